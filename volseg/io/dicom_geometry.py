"""The order and the grid of slices; whatever is no regular stack is refused with numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import DataError, GeometryError, counted
from volseg.geometry.grid import Grid
from volseg.io.dicom_frames import FloatArray, Frame
from volseg.io.dicom_one_scan import check_one_scan
from volseg.io.dicom_tags import TRAITS

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
TURN = 1e-3
"""Largest difference of two direction cosines that are taken for the same."""
ZOOM = 1e-3
"""Largest relative difference of two pixel spacings that are taken for the same."""
SAME_MM = 0.01
"""Slices closer than this are at the same position."""
UNEVEN = 0.05
"""Largest distance of a slice from its place in an even stack, as a share of the distance of two slices."""
TILT_DEG = 0.1
SHIFT_PIXELS = 0.5
LISTED = 5


def arrange(frames: Sequence[Frame], path: Path) -> tuple[list[Frame], Grid]:
    """Sort slices by their position along the normal of their plane, and check that they are an even stack.

    Args:
        frames: The slices of a series, in any order.
        path: The series, for messages.

    Returns:
        The slices in order, and the grid of ``(columns, rows, slices)`` in RAS+ mm.

    Raises:
        DataError: Slices are of several scans, differ in size, spacing or orientation, lie at the same position, are
            missing, or are not stacked along their normal.
    """
    check_one_scan(frames, path)
    for name, value, tolerance in _properties(frames[0]):
        _check_alike(frames, name, value, tolerance, path)
    row, column, normal = _axes(frames[0], path)
    positions = np.array([frame.position_mm for frame in frames])
    with np.errstate(over="ignore", invalid="ignore"):  # positions beyond float64, which Grid refuses
        along = (positions - positions[0]) @ normal
    order = np.argsort(along, kind="stable")
    frames, positions, along = [frames[index] for index in order], positions[order], along[order]
    if len(frames) == 1:
        step_mm = _thickness(frames[0], path)
    else:
        _check_positions(frames, along, path)
        _check_straight(frames, positions - positions[0], normal, path)
        _check_even(frames, along, path)
        step_mm = float(along[-1] - along[0]) / (len(frames) - 1)
    affine = np.eye(4)
    between_rows, between_columns = frames[0].spacing_mm
    affine[:3, :3] = LPS_TO_RAS @ np.stack([row * between_columns, column * between_rows, normal * step_mm], axis=1)
    affine[:3, 3] = LPS_TO_RAS @ positions[0]
    rows, columns = frames[0].shape
    try:
        return frames, Grid((columns, rows, len(frames)), affine)
    except GeometryError as error:
        found, hint = error.in_short, "export the series again"
        raise DataError("the slices have no usable affine", file=path, found=found, hint=hint) from error


def _properties(frame: Frame) -> list[tuple[str, Callable[[Frame], FloatArray], FloatArray | float]]:
    """Return what all slices share: its name, its value, and the tolerance."""
    return [
        ("sizes (rows, columns)", lambda one: np.array(one.shape, np.float64), 0.0),
        ("pixel spacings (mm)", lambda one: np.array(one.spacing_mm), ZOOM * np.array(frame.spacing_mm)),
        ("orientations (cosines of rows and columns)", lambda one: one.orientation.ravel(), TURN),
    ]


def _check_alike(
    frames: Sequence[Frame], name: str, value: Callable[[Frame], FloatArray], tolerance: Any, path: Path
) -> None:
    """Check that a property is the same for all slices."""
    groups: list[list[Frame]] = []
    for frame in frames:
        group = next((one for one in groups if (abs(value(one[0]) - value(frame)) <= tolerance).all()), None)
        if group is not None:
            group.append(frame)
        elif len(groups) <= LISTED:
            groups.append([frame])
    if len(groups) > 1:
        texts = (
            f"{counted(len(group), 'slice')}: {', '.join(f'{number:.6g}' for number in value(group[0]))}, "
            f"such as {group[0].name}"
            for group in groups
        )
        hint = "keep the slices of one stack in a folder, without localizers"
        raise DataError(f"the slices of the series have different {name}", file=path, found=_lines(texts), hint=hint)


def _axes(frame: Frame, path: Path) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the directions of increasing column, row and slice, which are exactly perpendicular."""
    row, column = frame.orientation
    lengths = np.linalg.norm(frame.orientation, axis=1)
    if abs(lengths - 1).max() > TURN or abs(row @ column) > TURN:
        found = ", ".join(f"{number:.6g}" for number in frame.orientation.ravel())
        expected = "two perpendicular directions of length 1"
        problem = f"ImageOrientationPatient is not valid ({frame.name})"
        hint = "export the series again, or correct the tag by another export of the same scan"
        raise DataError(problem, file=path, found=found, expected=expected, hint=hint)
    row = row / lengths[0]
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    return row, np.cross(normal, row), normal


def _thickness(frame: Frame, path: Path) -> float:
    step_mm = frame.distance_mm or frame.thickness_mm
    if step_mm is None:
        raise DataError(
            "the series has a single slice of unknown thickness",
            file=path,
            found=frame.name,
            expected="several slices, or one with SliceThickness or SpacingBetweenSlices",
            hint="give the folder of the whole series",
        )
    return step_mm


def _check_positions(frames: Sequence[Frame], along: FloatArray, path: Path) -> None:
    """Check that no two slices are at the same position."""
    starts = np.flatnonzero(np.diff(along, prepend=-np.inf) > SAME_MM)
    counts = np.diff(starts, append=len(frames))
    repeated = starts[counts > 1]
    if not len(repeated):
        return
    positions = counted(len(starts), "position")
    texts = [f"{len(frames)} slices at {positions}; several at {len(repeated)} of them:"]
    for start in repeated[:LISTED]:
        same = frames[start : start + int(counts[np.searchsorted(starts, start)])]
        texts.append(f"{_place(same[0])}: {', '.join(frame.name for frame in same[:LISTED])}{_differences(same)}")
    hint = "keep one phase, echo or copy of every slice in a folder"
    raise DataError("several slices of the series lie at the same position", file=path, found=_lines(texts), hint=hint)


def _differences(frames: Sequence[Frame]) -> str:
    """Return in which tags slices at one position differ."""
    values = {trait: [frame.header.text(trait) for frame in frames[:LISTED]] for trait in TRAITS}
    texts = [f"{trait} {', '.join(texts)}" for trait, texts in values.items() if len(set(texts)) > 1]
    return f" ({'; '.join(texts)[:200]})" if texts else ""


def _check_straight(frames: Sequence[Frame], offsets: FloatArray, normal: FloatArray, path: Path) -> None:
    """Check that the slices are stacked along their normal.

    Args:
        frames: The slices in order.
        offsets: Their positions relative to the first, mm, ``(N, 3)``.
        normal: The normal of their plane.
        path: The series.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        along = offsets @ normal
        aside = np.linalg.norm(offsets - along[:, None] * normal, axis=1)
    tilt_deg = float(np.degrees(np.arctan2(aside[-1], along[-1])))
    if tilt_deg > TILT_DEG:
        raise DataError(
            "the slices are not stacked along their normal (tilted gantry)",
            file=path,
            found=f"{tilt_deg:.2f} degrees",
            expected=f"at most {TILT_DEG} degrees",
            hint="resample the series to an upright stack, for example with dcm2niix, and give the result",
        )
    limit_mm = SHIFT_PIXELS * min(frames[0].spacing_mm)
    worst = int(np.argmax(aside))
    if aside[worst] > limit_mm:
        raise DataError(
            "slices of the series are shifted within their plane",
            file=path,
            found=f"{aside[worst]:.4g} mm ({frames[worst].name})",
            expected=f"at most {limit_mm:.4g} mm, half a pixel",
        )


def _check_even(frames: Sequence[Frame], along: FloatArray, path: Path) -> None:
    """Check that the slices have the same distance."""
    gaps = np.diff(along)
    step_mm, usual_mm = float(gaps.mean()), float(np.median(gaps))
    places = along[0] + step_mm * np.arange(len(frames))
    worst_mm = float(abs(along - places).max())
    if worst_mm <= UNEVEN * step_mm:
        return
    wrong = np.flatnonzero(abs(gaps - usual_mm) > UNEVEN * usual_mm)
    texts = [f"{len(wrong)} of {len(gaps)} distances:"] if len(wrong) else [f"slices up to {worst_mm:.4g} mm off:"]
    texts += [
        f"{gaps[at]:.4g} mm between {_place(frames[at])} ({frames[at].name}) and "
        f"{_place(frames[at + 1])} ({frames[at + 1].name})"
        for at in wrong[:LISTED]
    ]
    raise DataError(
        "slices of the series are missing, or unevenly spaced",
        file=path,
        found=_lines(texts),
        expected=f"{usual_mm:.4g} mm between neighbours, every slice within {UNEVEN:.0%} of that from its place",
        hint="export all slices again, or resample the series to even slices",
    )


def doubtful_distance(frames: Sequence[Frame], step_mm: float) -> str | None:
    """Return why slices may be missing from an even stack: their distance is a multiple of what they state.

    Args:
        frames: The slices in order.
        step_mm: Their distance by their positions.
    """
    if len(frames) < 2 or len({frame.header.member for frame in frames}) < len(frames):
        return None  # frames of one file are not lost
    name, stated = "SpacingBetweenSlices", [frame.distance_mm for frame in frames if frame.distance_mm is not None]
    if not stated and not _is_numbered(frames):  # gaps between thin slices are usual, and are numbered without gaps
        name, stated = "SliceThickness", [frame.thickness_mm for frame in frames if frame.thickness_mm is not None]
    multiple = step_mm / float(np.median(stated)) if stated else 1.0
    if round(multiple) < 2 or abs(multiple - round(multiple)) > UNEVEN * multiple:
        return None
    numbers = ", ".join(frame.header.text("InstanceNumber")[:10] or "none" for frame in frames[:LISTED])
    more = " ..." if len(frames) > LISTED else ""
    return f"slices {step_mm:.4g} mm apart; {name}: {np.median(stated):.4g} mm; InstanceNumber: {numbers}{more}"


def _is_numbered(frames: Sequence[Frame]) -> bool:
    """Return whether the slices in order have consecutive instance numbers."""
    texts = [frame.header.text("InstanceNumber") for frame in frames]
    numbers = [int(text[:10]) for text in texts if text.isdecimal()]
    return len(numbers) == len(frames) and set(np.diff(numbers).tolist()) in ({1}, {-1})


def _place(frame: Frame) -> str:
    return f"({', '.join(f'{number:.2f}' for number in frame.position_mm)}) mm"


def _lines(texts: Any) -> str:
    return "\n    ".join(texts)
