"""The fingerprint of a data set: shapes, spacings, classes and intensities of all cases, in (R, A, S) order."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from volseg.errors import DataError, counted
from volseg.geometry import ops
from volseg.geometry.ops import label_boxes, nonzero_box
from volseg.geometry.volume import Mask, Volume
from volseg.io.checks import inspect_case
from volseg.io.datasets import Case, Dataset
from volseg.io.description import modality_of
from volseg.io.findings import Finding, in_order, refuse_errors
from volseg.io.labels import LabelMap, Values
from volseg.io.modality import CT_BELOW_HU, UNKNOWN
from volseg.parallel import Progress, for_each_case
from volseg.planning.case_checks import CaseRecord, compare, looks_like_ct, make_record

logger = logging.getLogger(__name__)

SAMPLES_PER_CASE = 10_000
"""Most foreground voxels per case in the intensity statistics."""
SAMPLES_FOR_RANGE = 100_000
"""Voxels, at regular distances, of which the range of a channel is measured (about)."""
AIR_WINDOW_HU = -500.0
"""A window whose CT values all lie below this holds only air or lung: lung is about -850 HU, fat about -100 HU."""
AIR_CUBE_MM = 20.0
"""Edge of the cubes of air that are searched for labels: skipping windows of air would lose such labels."""

UNUSABLE = {"constant", "not-finite", "too-large-value"}
"""Kinds of errors whose images are not compared with others."""

Triple = tuple[float, float, float]
Range = tuple[float, float]
"""(smallest, largest)."""


@dataclass(frozen=True, kw_only=True)
class ClassShape:
    """Size and position of one class in one case.

    Attributes:
        extent_mm: Bounding box of its largest connected component, (R, A, S).
        centroid_mm: Mean position along the volume's axes, (R, A, S), from the volume's corner.
        outside_nonzero: Share of its voxels outside the bounding box of the image's nonzero voxels.
        volume_ml: Volume of all its voxels.
    """

    extent_mm: Triple
    centroid_mm: Triple
    outside_nonzero: float = 0.0
    volume_ml: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One case; triples are ordered (R, A, S), independent of the order of the file's axes.

    Attributes:
        id: Name of the case.
        shape: Voxels.
        spacing_mm: Voxel size.
        nonzero_shape: Voxels of the bounding box of the nonzero voxels.
        classes: Shape of each class that occurs.
        labels_in_air: Whether a labelled voxel lies in a 20 mm cube of air; ``None`` if the data set is not CT.
        midline_mm: Position along R of the middle of the body, from the volume's corner; ``None`` if not measured.
        ranges: 0.5 and 99.5 percentile of each channel; empty if not measured.
        identity_affine: Whether the affine in the file is the identity.
        file: Its first image, for messages.
    """

    id: str
    shape: tuple[int, int, int]
    spacing_mm: Triple
    nonzero_shape: tuple[int, int, int]
    classes: dict[str, ClassShape]
    labels_in_air: bool | None = None
    midline_mm: float | None = None
    ranges: tuple[Range, ...] = ()
    identity_affine: bool = False
    file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class IntensityStatistics:
    """Statistics of the foreground of one channel over all cases (at most 10,000 evenly spaced voxels per case)."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The measurements of a data set from which :func:`~volseg.planning.derive.make_plan` derives the plan.

    Attributes:
        dataset: Name of the data set.
        modality: ``ct`` or ``mri``.
        channels: Names of the channels; of unnamed ones, what their values say.
        label_map: The classes.
        intensity: Statistics of the foreground of each channel.
        cases: The labelled cases.
        unlabelled: Number of cases without a label.
        channel_source: How the names of the channels are known.
    """

    dataset: str
    modality: str
    channels: tuple[str, ...]
    label_map: LabelMap
    intensity: tuple[IntensityStatistics, ...]
    cases: tuple[CaseFingerprint, ...]
    unlabelled: int = 0
    channel_source: str = "named by the data set"

    @property
    def size_text(self) -> str:
        """The number of cases in words: ``208 labelled cases, 0 unlabelled``."""
        count = len(self.cases)
        return f"{counted(count, 'labelled case')}, {self.unlabelled} unlabelled"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was measured and found in a data set.

    Attributes:
        dataset: The data set.
        fingerprint: The measurements of the cases without errors; ``None`` if there is no such case, or no foreground.
        findings: Everything that is wrong, doubtful or worth knowing, in the order of reports.
    """

    dataset: Dataset
    fingerprint: Fingerprint | None
    findings: tuple[Finding, ...]

    def checked(self) -> Fingerprint:
        """Return the fingerprint.

        Raises:
            DataError: There are errors; all are listed.
        """
        refuse_errors(self.findings, self.dataset.root)
        assert self.fingerprint is not None  # there would be an error
        return self.fingerprint


def fingerprint(dataset: Dataset, progress: Progress | None = None, *, workers: int = 0) -> Fingerprint:
    """Measure and check every case; see :func:`survey`.

    Raises:
        DataError: There are no cases, invalid cases (each is named), or no foreground voxel in any case.
    """
    return survey(dataset, progress, workers=workers).checked()


def survey(dataset: Dataset, progress: Progress | None = None, *, workers: int = 0) -> Survey:
    """Measure and check every case, and compare the cases with each other; every file is read once.

    Args:
        dataset: Labelled cases, and scans without labels, which are checked and compared.
        progress: Called after every case with (done, in all).
        workers: Processes that read; 0 reads in this one.

    Raises:
        DataError: There are no cases.
    """
    if not dataset.cases and not dataset.findings:
        raise DataError("the data set has no labelled case", file=dataset.root)
    work = partial(
        _examine,
        channels=dataset.channels,
        label_map=dataset.label_map,
        search_air=dataset.modality == "ct" or UNKNOWN in dataset.channels,
    )
    cases = [*dataset.cases, *dataset.unlabelled]
    logger.info("reading %s", counted(len(cases), "labelled case"))
    examined = for_each_case(work, cases, workers=workers, progress=progress)
    findings = [*dataset.findings, *(finding for one in examined for finding in one.findings)]
    records = [one.record for one in examined if one.record is not None]
    measured = [(one.case, one.samples) for one in examined if one.case is not None and one.intact]
    channels, source, shapes = dataset.channels, Fingerprint.channel_source, [case for case, _ in measured]
    if UNKNOWN in channels and shapes:
        name, source = _modality(shapes, dataset.root)
        channels = (name,) * len(channels)
    findings += compare(dataset, channels, records, {one.case.id: one.case for one in examined if one.case is not None})
    if not sum(samples.shape[1] for _, samples in measured):
        if measured:
            expected = ", ".join(f"{name}={value}" for name, value in dataset.labels.items())
            findings.append(Finding("no-foreground", (dataset.root,), f"expected: {expected}"))
        return Survey(dataset=dataset, fingerprint=None, findings=tuple(in_order(findings)))
    result = Fingerprint(
        dataset=dataset.name,
        modality=modality_of(channels),
        channels=channels,
        label_map=dataset.label_map,
        intensity=tuple(_statistics(channel) for channel in np.concatenate([part for _, part in measured], axis=1)),
        cases=tuple(shapes),
        unlabelled=len(dataset.unlabelled),
        channel_source=source,
    )
    return Survey(dataset=dataset, fingerprint=result, findings=tuple(in_order(findings)))


@dataclass(frozen=True, kw_only=True)
class _Examined:
    """A case as a worker returns it.

    Attributes:
        findings: What is wrong with it.
        record: What is compared with other cases; ``None`` if neither image nor label can be used.
        case: Its fingerprint; ``None`` if its image cannot be used, or it has no label.
        intact: Whether it has no errors; others are compared, and not part of the fingerprint of the data set.
        samples: Its foreground values (C, N) float32.
    """

    findings: tuple[Finding, ...]
    record: CaseRecord | None = None
    case: CaseFingerprint | None = None
    intact: bool = False
    samples: np.ndarray


def _examine(case: Case, channels: tuple[str, ...], label_map: LabelMap, search_air: bool) -> _Examined:
    """Read, check and measure a case."""
    seen = inspect_case(case, channels, label_map)
    findings = [*seen.findings, *(Finding.of_error(error, case.images[0]) for error in seen.errors)]
    if case.label is None:  # nothing is trained on it
        findings = [replace(finding, kind="test-scan") for finding in findings if finding.severity == "error"]
    nothing = np.zeros((len(channels), 0), np.float32)
    volume = None if UNUSABLE & {error.kind for error in seen.errors} else seen.volume
    if volume is None and seen.mask is None:
        return _Examined(findings=tuple(findings), samples=nothing)
    intact = not seen.errors
    record = make_record(case, volume, seen.mask, intact=intact)
    if volume is None or case.label is None:
        return _Examined(findings=tuple(findings), record=record, samples=nothing)
    mask = seen.mask or Mask(np.zeros(volume.grid.shape, np.uint8), volume.grid)
    measured, samples = _measure(case, volume, mask, label_map, search_air)
    samples = samples if intact else nothing
    return _Examined(findings=tuple(findings), record=record, case=measured, intact=intact, samples=samples)


def _measure(
    case: Case, volume: Volume, mask: Mask, label_map: LabelMap, search_air: bool
) -> tuple[CaseFingerprint, np.ndarray]:
    """Return the fingerprint of a case and its foreground samples (C, N) float32."""
    data, grid = ops.reorient(volume.data, volume.grid, "RAS")
    label = ops.reorient(mask.labels[None], volume.grid, "RAS")[0][0]  # (R, A, S)
    spacing = np.asarray(grid.spacing_mm, dtype=np.float64)
    foreground = np.flatnonzero((label > 0) & (label != label_map.ignore_label))
    samples = foreground[spread(len(foreground), SAMPLES_PER_CASE)]
    start, stop = nonzero_box(data)
    return CaseFingerprint(
        id=case.id,
        shape=grid.shape,
        spacing_mm=_rounded(spacing, 6),
        nonzero_shape=(stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]),
        classes=_class_shapes(label, label_map.classes, spacing, (start, stop)),
        labels_in_air=labels_in_air(data, label != 0, spacing) if search_air else None,
        midline_mm=round(midline(data[0]) * spacing[0], 3),
        ranges=tuple(channel_range(channel) for channel in data),
        identity_affine=np.array_equal(volume.grid.affine, np.eye(4)),
        file=case.images[0],
    ), data.reshape(len(data), -1)[:, samples].astype(np.float32)


def _modality(cases: Sequence[CaseFingerprint], root: Path) -> tuple[str, str]:
    """Return ``CT`` if the values of most cases say so, else ``MRI``, and the reason."""
    votes = [looks_like_ct(case.ranges[0]) for case in cases]
    name = "CT" if 2 * sum(votes) > len(votes) else "MRI"
    logger.info('%s: taken for %s by its values (to override it, state "modality" in dataset.json)', root, name)
    return name, f"not named; {sum(votes)} of {len(votes)} cases have values below {CT_BELOW_HU}, as only CT has"


def channel_range(channel: np.ndarray) -> Range:
    """Return the 0.5 and 99.5 percentile of a channel (D, H, W) of any real type, measured on a part of its voxels."""
    step = max(1, round((channel.size / SAMPLES_FOR_RANGE) ** (1 / 3)))
    low, high = np.percentile(channel[::step, ::step, ::step].astype(np.float64), (0.5, 99.5))
    return round(float(low), 4), round(float(high), 4)


def midline(channel: np.ndarray) -> float:
    """Return the index along the first axis that halves the body: voxels brighter than the middle of the range.

    Args:
        channel: (R, A, S), any real type.
    """
    low, high = channel_range(channel)
    step = max(1, round((channel[0].size / SAMPLES_FOR_RANGE) ** (1 / 2)))
    body = np.count_nonzero(channel[:, ::step, ::step] > (low + high) / 2, axis=(1, 2))
    if not body.any():
        return (len(channel) - 1) / 2
    return float(np.searchsorted(np.cumsum(body), body.sum() / 2))


def labels_in_air(data: np.ndarray, labelled: np.ndarray, spacing: np.ndarray) -> bool:
    """Return whether a labelled voxel (R, A, S) lies in a cube of ``AIR_CUBE_MM`` that is air in every channel.

    The union of such cubes is the morphological opening of the air. The cubes lie inside the image, as windows do.
    """
    if not labelled.any():
        return False
    size = [max(1, math.floor(AIR_CUBE_MM / mm)) for mm in spacing]
    if any(n > length for n, length in zip(size, labelled.shape, strict=True)):
        return False  # no cube lies inside the image
    box = tuple(
        slice(max(0, axis.start - n), axis.stop + n)
        for axis, n in zip(ndimage.find_objects(labelled.astype(np.uint8))[0], size, strict=True)
    )
    air = (data[(slice(None), *box)] < AIR_WINDOW_HU).all(axis=0).astype(np.uint8)
    centres = ndimage.minimum_filter(air, size, mode="constant", cval=0)
    mirrored = [-1 if n % 2 == 0 else 0 for n in size]  # the reflected structuring element of an even size
    opened = ndimage.maximum_filter(centres, size, mode="constant", cval=0, origin=mirrored)
    return bool((opened.astype(bool) & labelled[box]).any())


def spread(count: int, limit: int) -> np.ndarray:
    """Return evenly spaced indices of at most ``limit`` of ``count`` items: a sample without random numbers."""
    return np.linspace(0, max(count - 1, 0), min(count, limit)).round().astype(np.int64)


def _class_shapes(
    label: np.ndarray, classes: Mapping[str, Values], spacing: np.ndarray, nonzero: tuple[Sequence[int], Sequence[int]]
) -> dict[str, ClassShape]:
    """Return the shape of each class that occurs; ``nonzero`` is the first and the last + 1 index of that box."""
    boxes = label_boxes(label, {value for values in classes.values() for value in values})
    shapes = {}
    for name, values in sorted(classes.items(), key=lambda entry: entry[1]):
        parts = [boxes[value] for value in values if value in boxes]
        if not parts:
            continue
        box = _around(parts)
        piece = np.isin(label[box], values)  # (r, a, s), the bounding box of the class
        start = np.array([axis.start for axis in box])
        inside = piece[tuple(slice(max(0, a - n), max(0, b - n)) for a, b, n in zip(*nonzero, start, strict=True))]
        voxels = np.count_nonzero(piece)
        centroid = (np.array(ndimage.center_of_mass(piece)) + start) * spacing
        shapes[name] = ClassShape(
            extent_mm=_rounded(_largest_extent(piece) * spacing, 3),
            centroid_mm=_rounded(centroid, 3),
            outside_nonzero=1 - np.count_nonzero(inside) / voxels,
            volume_ml=round(voxels * float(spacing.prod()) / 1000, 6),
        )
    return shapes


def _around(boxes: Sequence[ops.Box]) -> ops.Box:
    """Return the smallest box that holds all boxes."""
    r, a, s = (
        slice(min(side.start for side in axis), max(side.stop for side in axis)) for axis in zip(*boxes, strict=True)
    )
    return r, a, s


def _largest_extent(piece: np.ndarray) -> np.ndarray:
    """Return the voxels along each axis of the bounding box of the largest connected component."""
    components, _ = ndimage.label(piece)
    largest = int(np.bincount(components.ravel())[1:].argmax())
    return np.array([axis.stop - axis.start for axis in ndimage.find_objects(components)[largest]])


def _statistics(samples: np.ndarray) -> IntensityStatistics:
    low, high = np.percentile(samples.astype(np.float64), (0.5, 99.5))
    return IntensityStatistics(
        mean=float(samples.mean(dtype=np.float64)),
        std=float(samples.std(dtype=np.float64)),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def _rounded(values: np.ndarray, digits: int) -> Triple:
    first, second, third = (round(float(value), digits) for value in values)
    return first, second, third
