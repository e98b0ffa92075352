"""Cases whose voxel size, field of view, orientation, values or classes are far from those of the other cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.errors import counted
from volseg.io.findings import Finding

if TYPE_CHECKING:
    from volseg.planning.case_checks import CaseRecord
    from volseg.planning.fingerprint import CaseFingerprint

MIN_CASES = 5
"""Fewest cases among which one can be an outlier."""
DEVIATIONS = 6.0
"""An outlier is further from the median than this many standard deviations, estimated as 1.4826 MAD ..."""
RATIO_MM, RATIO_VALUES, RATIO_VOLUME, SHIFT_HU = 1.8, 4.0, 3.0, 800.0
"""... and further than these floors: ratios of lengths, of ranges of values, of volumes, a shift of CT values ..."""
RATIO_SHARES, RATIO_SWAPPED = 20.0, 4.0
"""... of foreground to background, and of the volumes of two classes that may be swapped."""
TINY_SHARE = 1e-6
"""Smallest share of foreground and of background that is taken, because labels may have none of either."""
GROUP = 0.05
"""A larger share of the cases that are alike is a second protocol and no outlier; a single case always may be one."""
NEAREST_MM = 5.0
"""Two classes whose centres are nearer than this have no usual direction."""
SHOWN_PAIRS = 3
"""Most pairs of classes that a finding names."""
USUAL = 0.8
"""Share of the cases that must have the same orientation for another to be worth a note."""

Measured = Sequence[tuple["CaseRecord", "CaseFingerprint"]]


def outlying(values: ArrayLike, floor: float) -> NDArray[np.bool_]:
    """Return which values (N,) are outliers: far from the median, and in a small group apart from the others.

    Groups are runs of sorted values whose gaps are at most the floor. Two protocols with a few cases of the second are
    thus told from errors of a single case, and a second protocol does not hide such an error by widening the spread.

    Args:
        values: A number per case.
        floor: Distance from the median, and between groups, below which nothing is an outlier.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < MIN_CASES:
        return np.zeros(len(values), dtype=bool)
    distance = np.abs(values - np.median(values))
    far = distance > max(DEVIATIONS * 1.4826 * float(np.median(distance)), floor)
    order = np.argsort(values)
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > floor)])
    small = np.bincount(group)[group] <= max(1, GROUP * len(values))
    return np.asarray(far & small)


def odd_lengths(lengths: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which lengths (N,) are outliers."""
    return outlying(np.log(lengths), float(np.log(RATIO_MM)))


def odd_values(percentiles: NDArray[np.float64], *, ct: bool) -> NDArray[np.bool_]:
    """Return which cases have shifted values (CT), or a range of another order of magnitude (all others).

    Args:
        percentiles: 0.5 and 99.5 percentile of each case (N, 2).
        ct: Whether the channel is CT.
    """
    if ct:
        return np.asarray(outlying(percentiles[:, 0], SHIFT_HU) | outlying(percentiles[:, 1], SHIFT_HU))
    widths = np.maximum(percentiles[:, 1] - percentiles[:, 0], np.finfo(np.float32).tiny)
    return outlying(np.log(widths), float(np.log(RATIO_VALUES)))


def odd_volumes(volumes_ml: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which volumes (N,) are outliers; nan, where a class is absent, is none."""
    which = np.isfinite(volumes_ml) & (volumes_ml > 0)
    which[which] = outlying(np.log(volumes_ml[which]), float(np.log(RATIO_VOLUME)))
    return which


def find(
    channels: Sequence[str], measured: Measured, classes: Mapping[str, Sequence[int]], ignored: int | None
) -> Iterator[Finding]:
    """Yield the outliers of a data set.

    Args:
        channels: Names of the channels.
        measured: Records and fingerprints of the labelled cases without errors.
        classes: Name -> label values.
        ignored: The ignore label.
    """
    if len(measured) < MIN_CASES:
        return
    spacings = np.array([shape.spacing_mm for _, shape in measured])  # (N, 3), R, A, S
    extents = spacings * np.array([shape.shape for _, shape in measured])
    of_spacing = _any_axis(spacings)
    yield from _lengths("spacing-outlier", measured, spacings, of_spacing)
    yield from _lengths("size-outlier", measured, extents, _any_axis(extents) & ~of_spacing)
    yield from _orientations(measured)
    yield from _class_sizes(measured, classes, ignored)
    for number, name in enumerate(channels):
        yield from _values(number, measured, ct=name.strip().lower() == "ct")


def _any_axis(lengths_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which cases of (N, 3) are outliers along some axis."""
    return np.asarray(np.any([odd_lengths(axis) for axis in lengths_mm.T], axis=0))


def _lengths(
    kind: str, measured: Measured, lengths_mm: NDArray[np.float64], which: NDArray[np.bool_]
) -> Iterator[Finding]:
    median = _text(np.median(lengths_mm, axis=0))
    for index in np.flatnonzero(which).tolist():
        text = f"{_text(lengths_mm[index])} mm along R, A, S; median of the cases: {median} mm"
        yield Finding(kind, (measured[index][0].case.images[0],), text)


def _text(lengths_mm: NDArray[np.float64]) -> str:
    return " x ".join(f"{mm:.4g}" for mm in lengths_mm)


def _orientations(measured: Measured) -> Iterator[Finding]:
    grids = [(record.case.images[0], record.grid.orientation) for record, _ in measured if record.grid is not None]
    codes = Counter(code for _, code in grids)
    common, holders = codes.most_common(1)[0]
    if holders < USUAL * len(measured):
        return
    rare = {code for code, count in codes.items() if count <= max(1, GROUP * len(measured))} - {common}
    for path, code in grids:
        if code in rare:
            yield Finding("orientation-outlier", (path,), f"{code}; most cases: {common}")


def _values(number: int, measured: Measured, *, ct: bool) -> Iterator[Finding]:
    """Yield the cases whose values are shifted (CT), or whose range has another order of magnitude (all others)."""
    percentiles = np.array([shape.ranges[number] for _, shape in measured])  # (N, 2)
    which = odd_values(percentiles, ct=ct)
    low, high = np.median(percentiles, axis=0)
    for index in np.flatnonzero(which).tolist():
        record = measured[index][0]
        own = f"{percentiles[index][0]:.4g} to {percentiles[index][1]:.4g}"
        text = f"{own} (0.5 and 99.5 percentiles of channel {number}); median of the cases: {low:.4g} to {high:.4g}"
        yield Finding("intensity-outlier", (record.case.images[min(number, len(record.case.images) - 1)],), text)


def _class_sizes(measured: Measured, classes: Mapping[str, Sequence[int]], ignored: int | None) -> Iterator[Finding]:
    """Yield labels that are probably inverted or filled, and cases in which two classes are probably swapped."""
    usable = [(record, shape) for record, shape in measured if record.voxels and record.case.label]
    labels = [(record.case.label, record.voxels) for record, _ in usable if record.voxels and record.case.label]
    shapes = [shape for _, shape in usable]
    shares = np.array([foreground_share(voxels, ignored) for _, voxels in labels])
    filled = odd_shares(shares)
    for index in np.flatnonzero(filled).tolist():
        text = f"{shares[index]:.1%} of the voxels are foreground; median of the cases: {np.median(shares):.1%}"
        yield Finding("class-outlier", (labels[index][0],), text)
    for index, pairs in _exchanged_pairs(shapes, list(classes)).items():
        if not filled[index]:
            more = f"; and {counted(len(pairs) - SHOWN_PAIRS, 'more pair')}" if len(pairs) > SHOWN_PAIRS else ""
            text = "; ".join(pairs[:SHOWN_PAIRS])
            yield Finding("class-outlier", (labels[index][0],), f"as if classes were swapped: {text}{more}")


def _exchanged_pairs(shapes: Sequence[CaseFingerprint], names: Sequence[str]) -> dict[int, list[str]]:
    """Return number of a case -> descriptions of the pairs of classes that are probably swapped in it."""
    volumes_ml, centres_mm = {}, {}
    for name in names:
        own = [shape.classes.get(name) for shape in shapes]
        volumes_ml[name] = np.array([0.0 if one is None else one.volume_ml for one in own])
        centres_mm[name] = np.array([(np.nan,) * 3 if one is None else one.centroid_mm for one in own])  # (N, 3)
    pairs: dict[int, list[str]] = {}
    for first, second in combinations(names, 2):
        ours, theirs = volumes_ml[first], volumes_ml[second]
        by_volume = swapped(ours, theirs)
        for index in np.flatnonzero(by_volume).tolist():
            usual = f"medians of the cases: {np.median(ours):.3g} and {np.median(theirs):.3g} ml"
            text = f"{first} has {ours[index]:.3g} ml and {second} {theirs[index]:.3g} ml ({usual})"
            pairs.setdefault(index, []).append(text)
        for index in np.flatnonzero(opposite(centres_mm[first] - centres_mm[second]) & ~by_volume).tolist():
            pairs.setdefault(index, []).append(f"{first} and {second} lie the other way round than in the other cases")
    return pairs


def foreground_share(voxels: Mapping[int, int], ignored: int | None) -> float:
    """Return the share of the foreground among the voxels of a label that are not ignored."""
    counted = sum(count for value, count in voxels.items() if value != ignored)
    return 1 - voxels.get(0, 0) / max(1, counted)


def odd_shares(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which labels have more foreground than background (N,), unlike nearly all other cases."""
    odds = np.clip(shares, TINY_SHARE, 1 - TINY_SHARE)
    return (shares > 0.5) & outlying(np.log(odds / (1 - odds)), float(np.log(RATIO_SHARES)))


def swapped(first_ml: NDArray[np.float64], second_ml: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return in which cases (N,) the volumes of two classes are each like those of the other class elsewhere.

    Args:
        first_ml: Volume of a class in each case; 0 where it is absent.
        second_ml: The same of another class.
    """
    both = (first_ml > 0) & (second_ml > 0)
    if np.count_nonzero(both) < MIN_CASES:
        return np.zeros(len(both), dtype=bool)
    first, second = np.log(first_ml[both]), np.log(second_ml[both])
    others = np.maximum(np.abs(first - np.median(second)), np.abs(second - np.median(first)))  # as if exchanged
    ratios = first - second
    usual = np.median(ratios)
    like_the_other = (others < np.log(RATIO_VOLUME)) & (np.abs(ratios + usual) < np.abs(ratios - usual) / 4)
    both[both] = like_the_other & outlying(ratios, float(np.log(RATIO_SWAPPED))) if like_the_other.any() else False
    return both


def opposite(offsets_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return in which cases (N,) two classes lie the other way round, such as left and right kidney.

    Args:
        offsets_mm: From one class to the other in each case (N, 3), along R, A and S; nan where one is absent.
    """
    both = np.asarray(np.isfinite(offsets_mm).all(axis=1))
    which = np.zeros(len(both), np.bool_)
    if np.count_nonzero(both) < MIN_CASES:
        return which
    offsets = offsets_mm[both]
    usual = np.median(offsets, axis=0)
    length = float(np.linalg.norm(usual))
    if length < NEAREST_MM:
        return which
    turned = np.linalg.norm(offsets + usual, axis=1) < length / 2  # a part of a structure alone moves its centre
    which[both] = turned & outlying(offsets @ (usual / length), length)
    return which
