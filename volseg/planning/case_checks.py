"""Findings that show only when the cases of a data set are compared with each other."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import counted
from volseg.geometry import ops
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask, Volume
from volseg.io.cases import listed, of_one_patient
from volseg.io.datasets import Case, Dataset
from volseg.io.findings import Finding
from volseg.io.labels import value_counts, values_text
from volseg.io.modality import CT_BELOW_HU, UNKNOWN
from volseg.planning import outliers

if TYPE_CHECKING:
    from volseg.planning.fingerprint import CaseFingerprint, Range

MIN_CASES_RARE = 10
"""Fewest cases of which a class can be called rare."""
RARE = 0.02
"""Share of the cases up to which a class is rare; a single case always is."""
FEW_VOXELS, FEW_SHARE = 10, 0.005
"""A class has few voxels in a case if these are so many at most, and so small a share of its median; in a data set, if
all cases have so many at most: a single scan may show a corner of a structure."""
NARROW_HU = 50.0
"""A CT whose 0.5 and 99.5 percentiles are closer than this is scaled: soft tissue alone is wider."""
BACKGROUND_NAMES = frozenset(
    (
        *(
            "background",
            "bg",
            "back",
            "none",
            "nothing",
            "empty",
            "unlabeled",
            "unlabelled",
            "clear label",
            "clear_label",
        ),
        *("other", "others", "rest", "outside", "exterior", "air", "unknown", "normal", "void", "null", "zero", "0"),
    )
)
"""Names of the value 0, lower case, that do not name a class."""


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """What is compared between cases.

    Attributes:
        case: The case.
        grid: The image's grid, in the order of its file; ``None`` if the image cannot be used.
        image_sha256: Hash of the voxels of each channel, independent of their order in the file and of their type;
            ``None`` for a constant channel. Empty if the image cannot be used.
        label_sha256: The same of the label; ``None`` if it is missing or cannot be used.
        voxels: Label value -> voxels; ``None`` without a usable label.
        smallest: Smallest value of each channel.
    """

    case: Case
    grid: Grid | None
    image_sha256: tuple[str | None, ...]
    label_sha256: str | None
    voxels: dict[int, int] | None
    smallest: tuple[float, ...]


def make_record(case: Case, volume: Volume | None, mask: Mask | None, *, intact: bool) -> CaseRecord:
    """Return the record of a case that was read.

    Args:
        case: The case.
        volume: Its image; ``None`` if it cannot be used.
        mask: Its label.
        intact: Whether the case has no errors; the label of others is not compared.
    """
    return CaseRecord(
        case=case,
        grid=None if volume is None else volume.grid,
        image_sha256=() if volume is None else _voxel_hashes(volume.data, volume.grid),
        label_sha256=None if mask is None or not intact else _voxel_hashes(mask.labels[None], mask.grid)[0],
        voxels=None if mask is None else value_counts(mask.labels),
        smallest=tuple(float(channel.min()) for channel in volume.data) if volume is not None else (),
    )


def looks_like_ct(percentiles: Range) -> bool:
    """Return whether 0.5 % of the voxels have values that only CT has."""
    return percentiles[0] < CT_BELOW_HU


def compare(
    dataset: Dataset, channels: Sequence[str], records: Sequence[CaseRecord], shapes: Mapping[str, CaseFingerprint]
) -> list[Finding]:
    """Compare the cases of a data set.

    Args:
        dataset: The data set.
        channels: Its channels, after a guess where it does not state them.
        records: The cases whose image or label can be used, those without labels included.
        shapes: Name -> fingerprint of the labelled cases whose images can be used.
    """
    labelled = [record for record in records if record.case.label is not None]
    measured = [(record, shapes[record.case.id]) for record in labelled if record.case.id in shapes]
    hounsfield = list(_modality(dataset, channels, measured))
    explained = {finding.files for finding in hounsfield}  # shifted values are outliers, too
    found = outliers.find(channels, measured, dataset.label_map.classes, dataset.ignore_label)
    return [
        *_duplicates(records, test_split=dataset.test_split),
        *_answers(records),
        *_copied_channels(records),
        *_copied_labels(labelled, {0, dataset.ignore_label}),
        *_patients(dataset),
        *_similar_names(dataset),
        *_background_name(dataset),
        *_classes(dataset, labelled),
        *_no_geometry(labelled),
        *hounsfield,
        *(one for one in found if one.files not in explained),
    ]


def _voxel_hashes(data: NDArray[Any], grid: Grid) -> tuple[str | None, ...]:
    """Return the SHA-256 of the voxels of each channel (C, D, H, W) in (R, A, S) order as float32."""
    data, _ = ops.reorient(data, grid, "RAS")
    hashes: list[str | None] = []
    for channel in data:
        sha256 = hashlib.sha256(str(channel.shape).encode())
        for plane in channel.T:  # (S, A, R): files mostly store S slowest
            sha256.update(np.ascontiguousarray(plane, dtype=np.float32).data)
        hashes.append(None if channel.min() == channel.max() else sha256.hexdigest())
    return tuple(hashes)


def _duplicates(records: Iterable[CaseRecord], *, test_split: bool) -> Iterator[Finding]:
    """Yield a finding for every group of cases that have the same image."""
    groups: dict[tuple[str | None, ...], list[CaseRecord]] = defaultdict(list)
    for record in records:
        if any(record.image_sha256):
            groups[record.image_sha256].append(record)
    for group in groups.values():
        train = [record for record in group if record.case.label is not None]
        others = [record for record in group if record.case.label is None]
        labels = {record.label_sha256 for record in train} - {None}
        if len(group) == 1 or not train:
            continue
        if others:
            kind = "train-and-test" if test_split else "duplicate"
            yield Finding(kind, _images(group), f"{_names(train)} and {_names(others)}, which has no label")
        if len(train) > 1:
            kind = "duplicate" if len(labels) < 2 else "conflicting-labels"
            yield Finding(kind, _images(train), _names(train))


def _answers(records: Sequence[CaseRecord]) -> Iterator[Finding]:
    """Yield the channels that have the voxels of a label, of the same case or of another."""
    labels = {record.label_sha256: record for record in reversed(records) if record.label_sha256 is not None}
    for record in records:
        for number, sha256 in enumerate(record.image_sha256):
            if sha256 in labels:
                other = record if record.label_sha256 == sha256 else labels[sha256]
                of = "its label" if other is record else f"the label of {other.case.id}"
                text = f"{record.case.id}: channel {number} has the voxels of {of}"
                yield Finding("image-copies-label", (_channel_file(record, number),), text)


def _copied_channels(records: Iterable[CaseRecord]) -> Iterator[Finding]:
    """Yield the channels of one case, or of cases with different images, that have the same voxels."""
    groups: dict[str, list[tuple[CaseRecord, int]]] = defaultdict(list)
    different = {record.image_sha256: record for record in records}  # copies of whole images are findings of their own
    for record in different.values():
        for number, sha256 in enumerate(record.image_sha256):
            if sha256 is not None:
                groups[sha256].append((record, number))
    for group in groups.values():
        if len(group) > 1:
            text = listed([f"{record.case.id}: channel {number}" for record, number in group])
            yield Finding("copied-channel", tuple(dict.fromkeys(_channel_file(*one) for one in group)), text)


def _copied_labels(labelled: Iterable[CaseRecord], ignored: set[int | None]) -> Iterator[Finding]:
    """Yield the labels of cases with different images that have the same voxels.

    Registered scans of one patient may share a label: those whose patient is stated are no finding. Labels that are
    empty, full, or have a few voxels only may be the same by chance.
    """
    groups: dict[str, list[CaseRecord]] = defaultdict(list)
    for record in labelled:
        voxels = record.voxels or {}
        foreground = sum(count for value, count in voxels.items() if value not in ignored)
        if record.label_sha256 is not None and foreground > FEW_VOXELS and len(voxels) > 1:
            groups[record.label_sha256].append(record)
    for group in groups.values():
        one_patient = of_one_patient([record.case for record in group])
        files = {os.path.realpath(path) for path in _labels(group)}  # of one file, it is a finding of the layout
        if len(files) > 1 and len({record.image_sha256 for record in group}) > 1 and not one_patient:
            yield Finding("shared-label", _labels(group), f"the same voxels in the labels of {_names(group)}")


def _channel_file(record: CaseRecord, number: int) -> Path:
    """Return the file of a channel; that of the image if one file holds several channels."""
    images = record.case.images
    return images[number] if len(images) == len(record.image_sha256) else images[0]


def _patients(dataset: Dataset) -> Iterator[Finding]:
    """Yield the patients whose cases the data set itself puts into several splits."""
    cases: dict[str, list[Case]] = defaultdict(list)
    for case in (*dataset.cases, *(dataset.unlabelled if dataset.test_split else ())):
        if case.patient is not None:
            cases[case.patient].append(case)
    for patient, own in cases.items():
        splits = {case.id: "test" if case.label is None else f"fold {case.fold}" for case in own}
        splits = {name: "every fold" if split == "fold None" else split for name, split in splits.items()}
        if len(set(splits.values())) > 1:
            text = ", ".join(f"{name}: {split}" for name, split in splits.items())
            yield Finding("patient-in-splits", tuple(case.images[0] for case in own), f"patient {patient}: {text}")


def _similar_names(dataset: Dataset) -> Iterator[Finding]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in (*dataset.cases, *dataset.unlabelled):
        groups[case.id.casefold()].append(case)
    for group in groups.values():
        names = sorted({case.id for case in group})
        if len(names) > 1:
            yield Finding("similar-names", tuple(case.images[0] for case in group), ", ".join(names))


def _background_name(dataset: Dataset) -> Iterator[Finding]:
    name = dataset.label_map.background
    if name.strip().lower() not in BACKGROUND_NAMES:
        yield Finding("background-name", (dataset.root,), f'0 is "{name}"')


def _classes(dataset: Dataset, labelled: Sequence[CaseRecord]) -> Iterator[Finding]:
    """Yield labels and classes that are empty, rare, or have a few voxels only."""
    known = [(record, record.voxels) for record in labelled if record.voxels is not None]
    ignored = {0, dataset.ignore_label}
    for record, voxels in known:
        if not set(voxels) - ignored and record.case.label is not None:
            yield Finding("empty-label", (record.case.label,), f"values: {', '.join(map(str, voxels))}")
    if not any(set(voxels) - ignored for _, voxels in known):
        return  # an error of its own
    for name, values in sorted(dataset.label_map.classes.items(), key=lambda entry: entry[1]):
        counts = [(record, sum(voxels.get(value, 0) for value in values)) for record, voxels in known]
        holders = [(record, count) for record, count in counts if count]
        title = f"{name} ({values_text(values)})"
        if not holders:
            yield Finding("absent-class", (dataset.root,), f"{title} is in none of {counted(len(known), 'label')}")
        elif len(known) >= MIN_CASES_RARE and len(holders) <= max(1, RARE * len(known)):
            text = f"{title} is in {len(holders)} of {len(known)} cases"
            yield Finding("rare-class", _labels(record for record, _ in holders), text)
        elif len(known) >= outliers.MIN_CASES and sum(count for _, count in holders) <= FEW_VOXELS:
            total = sum(count for _, count in holders)
            text = f"{title}: {counted(total, 'voxel')} in {len(holders)} of {len(known)} cases, none elsewhere"
            yield Finding("few-voxels", _labels(record for record, _ in holders), text)
        median = float(np.median([count for _, count in holders])) if holders else 0.0
        for record, count in holders:
            if len(holders) >= outliers.MIN_CASES and count <= min(FEW_VOXELS, FEW_SHARE * median):
                text = f"{title}: {counted(count, 'voxel')}; median of the cases: {median:.0f}"
                yield Finding("few-voxels", _labels([record]), text)


def _no_geometry(labelled: Sequence[CaseRecord]) -> Iterator[Finding]:
    """Yield images whose header states nothing but the default grid, unless the other images confirm 1 x 1 x 1 mm."""
    grids = [(record.case.images[0], record.grid) for record in labelled if record.grid is not None]
    doubtful = [(path, grid) for path, grid in grids if is_default(grid)]
    others = [grid.spacing_mm for _, grid in grids if not is_default(grid)]
    if len(others) >= len(doubtful) and np.allclose(np.median(others, axis=0) if others else 0, 1.0, rtol=0.01):
        return
    for path, grid in doubtful:
        yield Finding("no-geometry", (path,), grid.describe())


def is_default(grid: Grid) -> bool:
    """Return whether a grid is what the libraries write for voxels without geometry.

    That is the identity, in RAS or LPS, also with axes flipped or permuted afterwards: a voxel at a corner is at zero.
    NIfTI without sform, qform and voxel sizes stands for an image whose centre is there.
    """
    axes, ends = np.rint(grid.affine[:3, :3]), np.array(grid.shape) - 1
    if not np.allclose(axes, grid.affine[:3, :3], atol=1e-6) or not np.array_equal(axes.T @ axes, np.eye(3)):
        return False
    index = -axes.T @ grid.affine[:3, 3]  # of the voxel at zero
    at_corner = np.isclose(index, 0) | np.isclose(index, ends)
    return bool(at_corner.all()) or np.allclose(index, ends / 2)


def _modality(
    dataset: Dataset, channels: Sequence[str], measured: Sequence[tuple[CaseRecord, CaseFingerprint]]
) -> Iterator[Finding]:
    """Yield channels, and single cases, whose values are not those of the modality that is stated or guessed."""
    for number, name in enumerate(channels):
        votes = [looks_like_ct(shape.ranges[number]) for _, shape in measured]
        called_ct = name.strip().lower() == "ct"
        if UNKNOWN in dataset.channels and number == 0:
            others = [record for (record, _), vote in zip(measured, votes, strict=True) if vote != called_ct]
            if others:
                yield Finding("modality", _images(others), f"do not look like {name}: {_names(others)}")
        elif called_ct:
            yield from _not_hounsfield(number, measured)
        elif name.strip().lower() == "nonorm":
            continue
        elif 2 * sum(votes) > len(votes):
            text = f'channel {name} has the values of CT (below {CT_BELOW_HU}); only "CT" is normalised as CT'
            yield Finding("modality", (dataset.root,), text, 'call the channel "CT" in dataset.json')
        elif sum(votes) <= max(1, outliers.GROUP * len(votes)):
            yield from _ct_among_others(number, name, [one for one, vote in zip(measured, votes, strict=True) if vote])


def _ct_among_others(
    number: int, name: str, measured: Sequence[tuple[CaseRecord, CaseFingerprint]]
) -> Iterator[Finding]:
    for record, shape in measured:
        low, high = shape.ranges[number]
        path = record.case.images[min(number, len(record.case.images) - 1)]
        text = (
            f"{low:.4g} to {high:.4g} (0.5 and 99.5 percentiles) in channel {name}, unlike the other cases: is it CT?"
        )
        yield Finding("modality", (path,), text, "remove the case, or correct how its image was exported")


def _not_hounsfield(number: int, measured: Sequence[tuple[CaseRecord, CaseFingerprint]]) -> Iterator[Finding]:
    for record, shape in measured:
        low, high = shape.ranges[number]
        if record.smallest[number] >= 0 or high - low < NARROW_HU:
            path = record.case.images[min(number, len(record.case.images) - 1)]
            text = f"{low:.4g} to {high:.4g} (0.5 and 99.5 percentiles), the smallest is {record.smallest[number]:.4g}"
            yield Finding("not-hounsfield", (path,), f"{text}; expected: air near -1000, water 0")


def _images(records: Iterable[CaseRecord]) -> tuple[Any, ...]:
    return tuple(record.case.images[0] for record in records)


def _labels(records: Iterable[CaseRecord]) -> tuple[Any, ...]:
    return tuple(record.case.label for record in records if record.case.label is not None)


def _names(records: Iterable[CaseRecord]) -> str:
    return listed([record.case.id for record in records])
