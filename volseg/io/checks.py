"""Checks of a scan and of its label: channels, values and grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.errors import DataError, GeometryError, counted
from volseg.geometry.grid import Grid
from volseg.geometry.ops import in_order_of
from volseg.geometry.volume import Mask, Volume
from volseg.io.cases import Case, listed
from volseg.io.findings import Finding
from volseg.io.itk import segment_values
from volseg.io.label_content import check_is_label_map, check_not_negative
from volseg.io.labels import LabelMap, check_segment_names, value_counts
from volseg.io.paths import exists
from volseg.io.remarks import collect
from volseg.io.volumes import as_mask, image_errors, read_mask, read_volume, stack_channels

ROUNDING_MM = 1e-3
"""Grids whose corners differ by less are the same: the affines of files are rounded."""
SHEAR = 0.01
"""Cosine of the angle of two axes above which a grid is sheared: 0.6 degrees from a right angle."""
CaseError = DataError | GeometryError


@dataclass(frozen=True, eq=False)
class Inspection:
    """A case that was read and checked.

    Attributes:
        volume: The image (C, D, H, W); ``None`` if a file cannot be read or the channels do not fit.
        mask: The label (D, H, W) on the image's grid, in its voxel order; ``None`` if it cannot be read.
        errors: What makes the case unusable.
        findings: What is accepted, and worth knowing.
    """

    volume: Volume | None
    mask: Mask | None
    errors: tuple[CaseError, ...]
    findings: tuple[Finding, ...]


def load_case(
    case: Case, channels: Sequence[str], label_map: LabelMap, *, resample_channels: bool = False
) -> tuple[Volume, Mask]:
    """Read a labelled case and check everything that would spoil training silently.

    Args:
        case: Its files.
        channels: Names of the data set's channels.
        label_map: The classes; a label file may hold their values, the background's and the ignore label.
        resample_channels: Resample channels on other grids onto that of the first.

    Returns:
        Image (C, D, H, W) in the stored type and mask (D, H, W), both in the order of the image's file. A label file
        that holds the same voxels in another order is reordered.

    Raises:
        DataError: No label, unreadable file, NaN or constant image, wrong number of channels, unknown label value.
        GeometryError: Image and label lie on different grids.
    """
    if case.label is None:
        raise DataError("the case has no label", file=case.images[0], hint="add its label file or remove the image")
    inspection = inspect_case(case, channels, label_map, resample_channels=resample_channels)
    for error in inspection.errors:
        raise error
    assert inspection.volume is not None  # there would be an error
    assert inspection.mask is not None
    return inspection.volume, inspection.mask


def inspect_case(
    case: Case, channels: Sequence[str], label_map: LabelMap, *, resample_channels: bool = False
) -> Inspection:
    """Read a case, with or without a label, and find everything that is wrong with it.

    Args:
        case: Its files, and when their grids count as the same.
        channels: Names of the data set's channels.
        label_map: The classes.
        resample_channels: Resample channels on other grids onto that of the first.
    """
    errors: list[CaseError] = []
    with collect() as findings:
        volume, grid = _image(case, channels, errors, findings, resample=resample_channels)
        mask, readable = (None, False) if case.label is None else _label(case.label, label_map, errors)
    if grid is not None and mask is not None:
        mask = _on_grid_of(grid, mask, case, errors, findings)
    return Inspection(volume, mask if readable else None, tuple(errors), tuple(findings))


def read_label(case: Case, grid: Grid) -> Mask:
    """Read the label of a case in the voxel order of its image; values are not checked.

    Args:
        case: The case, with a label.
        grid: The grid of its image.

    Raises:
        DataError: The file cannot be read.
        GeometryError: It lies on another grid.
    """
    assert case.label is not None  # the caller's cases are labelled
    errors: list[CaseError] = []
    mask = _on_grid_of(grid, read_mask(case.label), case, errors, [])
    for error in errors:
        raise error
    assert mask is not None  # there would be an error
    return mask


def _image(
    case: Case, channels: Sequence[str], errors: list[CaseError], findings: list[Finding], *, resample: bool
) -> tuple[Volume | None, Grid | None]:
    """Read and check the image of a case; what is wrong is appended to ``errors`` or ``findings``.

    Returns:
        The image, and the grid of its first file; ``None`` for what cannot be used.
    """
    volumes: dict[Path, Volume] = {}
    for path in case.images:
        try:
            volumes[path] = read_volume(path)
        except (DataError, GeometryError) as error:
            errors.append(error.in_file(path))
    first = volumes[case.images[0]].grid if case.images[0] in volumes else None
    if first is not None:
        for path in [path for path in case.images[1:] if path in volumes]:
            findings += _deviation(volumes[path].grid, first, path, case, "the first channel")
        findings += _shear(first, case.images[0])
    volume = None
    if all(path in volumes for path in case.images):
        parts = [volumes[path] for path in case.images]
        try:
            volume = stack_channels(parts, case.images, resample=resample, tolerance_mm=case.grids.tolerance_mm)
            check_channels(volume, channels, case.images[0])
        except (DataError, GeometryError) as error:
            errors.append(error)
            volume = None
    if volume is not None:
        errors += image_errors(volume, case.images)
    else:  # the files that can be read are checked each on its own
        errors += [error for path, part in volumes.items() for error in image_errors(part, [path])]
    return volume, first


def _label(path: Path, label_map: LabelMap, errors: list[CaseError]) -> tuple[Mask | None, bool]:
    """Read and check a label; what is wrong is appended to ``errors``.

    Returns:
        The label, and whether it is one: of a file that holds no labels only the grid is right.
    """
    try:
        volume = read_volume(path)
    except (DataError, GeometryError) as error:
        errors.append(error.in_file(path))
        return None, False
    try:
        mask = as_mask(volume, path)
    except DataError as error:
        errors.append(error)
        return Mask(np.zeros(volume.grid.shape, np.uint8), volume.grid), False
    try:
        check_is_label_map(mask, path)
    except DataError as error:  # its values would be as many further errors
        errors.append(error)
        return mask, False
    checks: tuple[Callable[[], None], ...] = (
        lambda: check_not_negative(mask, path),
        lambda: check_label_values(mask, label_map, path),
        lambda: check_segment_names(segment_values(path), label_map, path),
    )
    for check in checks:
        try:
            check()
        except DataError as error:
            errors.append(error)
    return mask, True


def _on_grid_of(grid: Grid, mask: Mask, case: Case, errors: list[CaseError], findings: list[Finding]) -> Mask | None:
    """Return a label on the grid of its image; ``None`` if it lies on another."""
    assert case.label is not None
    rule = case.grids
    labels, ordered = in_order_of(mask.labels[None], mask.grid, grid, rule.tolerance_mm)
    both = f"{mask.grid.describe()}; image: {grid.describe()} ({case.images[0].name})"
    if not ordered.same_as(grid, rule.tolerance_mm):
        if rule.label_takes_image_grid and mask.grid.shape == grid.shape:
            findings.append(Finding("label-header", (case.label,), both))
            return Mask(mask.labels, grid)
        errors.append(
            GeometryError(
                "image and label lie on different grids",
                file=case.label,
                found=mask.grid.describe(),
                expected=f"{grid.describe()} ({case.images[0].name})",
                hint="export both again on one grid",
                kind="grid",
            )
        )
        return None
    if not mask.grid.same_as(grid, rule.tolerance_mm):
        findings.append(Finding("voxel-order", (case.label,), both))
    findings += _deviation(ordered, grid, case.label, case, "the image")
    return Mask(labels[0], grid)


def _deviation(grid: Grid, expected: Grid, path: Path, case: Case, of: str) -> list[Finding]:
    """Return a finding if a grid is within the tolerance of another, but not for rounding alone."""
    if not grid.same_as(expected, case.grids.tolerance_mm) or grid.same_as(expected, ROUNDING_MM):
        return []
    distance_mm = np.linalg.norm(grid.corners_mm() - expected.corners_mm(), axis=1).max()
    text = f"corners up to {distance_mm:.4g} mm from those of {of}; tolerance: {case.grids.tolerance_mm:g} mm"
    return [Finding("grid-tolerance", (path,), text)]


def _shear(grid: Grid, path: Path) -> list[Finding]:
    axes = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    cosine = float(np.abs(np.triu(axes.T @ axes, 1)).max())
    if cosine <= SHEAR:
        return []
    degrees = np.degrees(np.arcsin(min(cosine, 1.0)))
    return [Finding("shear", (path,), f"{degrees:.1f} degrees from a right angle")]


def check_channels(volume: Volume, channels: Sequence[str], file: str | Path | None = None) -> None:
    """Check the number of channels of an image.

    Args:
        volume: The image (C, D, H, W).
        channels: Names of the channels of the data set, or of those that a model was trained with.
        file: Its file, for the message.

    Raises:
        DataError: The image has another number.
    """
    if len(volume.data) != len(channels):
        raise DataError(
            "wrong number of channels",
            file=file,
            found=len(volume.data),
            expected=f"{len(channels)} ({', '.join(channels)})",
            hint="give the same channels in the same order as in training",
            kind="dimensions" if len(channels) == 1 else "channels",
        )


def check_files(images: Sequence[str | Path], channels: Sequence[str]) -> None:
    """Check that no file of a scan is missing while others are there, before any of them is read.

    Args:
        images: The files; each holds a channel if there are as many as channels.
        channels: Names of the channels.

    Raises:
        DataError: Some are missing; the message names their channels.
    """
    missing = [number for number, path in enumerate(images) if not exists(Path(path))]
    if not missing or len(images) != len(channels) or len(missing) == len(images):
        return  # if all are, the error of the first says so
    raise DataError(
        "a channel of the scan is missing",
        file=images[missing[0]],
        found=f"{len(images) - len(missing)} of {len(images)} channels",
        expected=", ".join(channels),
        hint=f"add {listed([f'{Path(images[number]).name} ({channels[number]})' for number in missing])}",
        kind="missing-file",
    )


def check_label_values(mask: Mask, label_map: LabelMap, file: str | Path) -> None:
    """Check that a label file holds only values of the data set; :func:`check_not_negative` finds negative ones.

    Raises:
        DataError: It holds another value; the message counts its voxels.
    """
    known = label_map.known_values
    values = {value: count for value, count in value_counts(mask.labels).items() if value not in known and value >= 0}
    unknown = [f"{value} ({counted(count, 'voxel')})" for value, count in values.items()]
    if unknown:
        raise DataError(
            "the label holds a value that the data set does not declare",
            file=file,
            found=listed(unknown),
            expected=", ".join(map(str, sorted(label_map.known_values))),
            hint="correct the label file, or name the value in dataset.json",
            kind="undeclared-value",
        )
