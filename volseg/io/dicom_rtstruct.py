"""Masks as DICOM RT Structure Sets: contours per slice, in objects that rt-utils makes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.extras import import_extra
from volseg.geometry.grid import Grid
from volseg.io.atomic import atomic_file
from volseg.io.dicom_codes import dicom_text
from volseg.io.dicom_files import named_errors
from volseg.io.dicom_source import MAKER, VALUE_TEXT, Source, label_value, mark, read_marked, read_source, series_number
from volseg.io.label_table import label_colour

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

SUFFIXES = (".rtstruct.dcm",)
KIND = "RTSTRUCT"
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
LEVEL = 0.6
"""Contours run at 1 - LEVEL = 0.4 voxels outside of the outermost voxel centres of a structure. Readers that fill the
voxels whose centre is inside, and readers that round contours to voxels, as rt-utils does, both find the same mask."""
DECIMALS = 4  # of coordinates in mm; a DICOM number has at most 16 characters

Points = NDArray[np.float64]


def libraries() -> ModuleType:
    """Import rt-utils.

    Raises:
        MissingExtraError: The extra ``dicom`` is not installed.
    """
    import_extra("rt_utils", "dicom", "--format rtstruct")
    return import_extra("rt_utils.ds_helper", "dicom", "--format rtstruct")


def write_voxels(
    path: Path, voxels: NDArray[Any], grid: Grid, source: Path | None, labels: Mapping[str, int] | None
) -> None:
    """Write closed contours atomically: one structure per class that has voxels. Holes are contours within contours.

    rt-utils copies patient and study from the series. A log line names the classes without voxels.

    Args:
        path: The ``.rtstruct.dcm`` file to write.
        voxels: Labels ``(D, H, W)``.
        grid: Their grid.
        source: The series: a folder, a zip or a file of it.
        labels: Name -> value.

    Raises:
        MissingExtraError: The extra ``dicom`` is not installed.
        OutputError: The file cannot be written, or there is no series.
        GeometryError: The mask is not on the grid of the series.
    """
    helper = libraries()
    series = read_source(path, voxels, grid, source, labels)
    if series.empty:
        logger.info("%s: no voxels, hence no structures: %s", path, ", ".join(series.empty))
    dataset = _structure_set(helper, series)
    for number, (name, value) in enumerate(series.classes.items(), start=1):
        _add_structure(dataset, helper, series, number, name, value)
    mark(dataset, series.grid)
    with atomic_file(path) as file:
        dataset.save_as(file, enforce_file_format=True)


def read_voxels(path: Path) -> tuple[NDArray[Any], Grid]:
    """Fill the contours of a structure set that volseg wrote, as label values on the grid of its series.

    Raises:
        DataError: The file is damaged, of another kind, or was not written by volseg.
    """
    dataset, grid = read_marked(path, KIND)
    labels = np.zeros(grid.shape, np.uint16)
    with named_errors(path):
        numbers = {int(item.ROINumber): item for item in dataset.StructureSetROISequence}
        for structure in dataset.ROIContourSequence:
            number = int(structure.ReferencedROINumber)
            inside = np.zeros(grid.shape, bool)
            for contour in structure.ContourSequence:
                points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
                index = _to_index(points, grid)
                inside[:, :, round(index[0, 2])] ^= filled(index[:, :2], grid.shape[:2])
            labels[inside] = label_value(numbers[number].get("ROIDescription", ""), number)
    return labels[None], grid


def read_grid(path: Path) -> Grid:
    """Read the grid of the series from the header.

    Raises:
        DataError: As ``read_voxels``.
    """
    return read_marked(path, KIND)[1]


def count_channels(path: Path) -> int:
    """Return 1: a mask has one channel."""
    return 1


def files_of(path: Path) -> list[Path]:
    """Return the file."""
    return [path]


def _structure_set(helper: ModuleType, series: Source) -> Dataset:
    """Return a structure set without structures. rt-utils fills it, but for what it can only do by deprecated names."""
    from pydicom.dataset import FileDataset

    meta, now = helper.get_file_meta(), datetime.now()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.StructureSetLabel, dataset.ApprovalStatus = KIND, MAKER, "UNAPPROVED"
    dataset.InstanceCreationDate = dataset.StructureSetDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.StructureSetTime = now.strftime("%H%M%S.%f")
    helper.add_sequence_lists_to_ds(dataset)
    helper.add_study_and_series_information(dataset, series.headers)
    helper.add_patient_information(dataset, series.headers)
    helper.add_refd_frame_of_ref_sequence(dataset, series.headers)
    for name in ("AccessionNumber", "ReferringPhysicianName"):
        dataset[name] = series.headers[0][name]
    dataset.SeriesNumber = series_number(series, 2)
    return dataset


def _add_structure(dataset: Dataset, helper: ModuleType, series: Source, number: int, name: str, value: int) -> None:
    """Add a class with its contours, name, colour and label value."""
    colour = [round(255 * share) for share in label_colour(value)]
    description = VALUE_TEXT.format(value)
    frame_of_reference = dataset.ReferencedFrameOfReferenceSequence[-1].FrameOfReferenceUID
    roi = helper.ROIData(
        None, colour, number, dicom_text(name), frame_of_reference, description, False, True, "AUTOMATIC"
    )
    contours = []
    for slice_index, header in enumerate(series.headers):
        for outline in outlines(series.labels[:, :, slice_index] == value):
            index = np.column_stack([outline, np.full(len(outline), slice_index)])
            points = series.grid.to_mm(index) * LPS_TO_RAS
            contours.append(helper.create_contour(header, np.round(points, DECIMALS).ravel().tolist()))
    dataset.ROIContourSequence.append(_contour_item(colour, contours, number))
    dataset.StructureSetROISequence.append(helper.create_structure_set_roi(roi))
    dataset.RTROIObservationsSequence.append(helper.create_rtroi_observation(roi))


def _contour_item(colour: Sequence[int], contours: Sequence[Dataset], number: int) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ROIDisplayColor = list(colour)
    item.ContourSequence = list(contours)
    item.ReferencedROINumber = number
    return item


def outlines(inside: NDArray[np.bool_]) -> list[Points]:
    """Return the outlines of a plane's structures and of their holes.

    Args:
        inside: ``(columns, rows)``.

    Returns:
        Closed polygons ``(N, 2)`` in voxel indices (column, row), whose last point is not the first again.
    """
    from contourpy import LineType, contour_generator

    if not inside.any():
        return []
    start = [int(np.flatnonzero(inside.any(axis=other))[0]) for other in (1, 0)]
    stop = [int(np.flatnonzero(inside.any(axis=other))[-1]) + 1 for other in (1, 0)]
    box = inside[start[0] : stop[0], start[1] : stop[1]]  # a structure takes a small part of a large plane
    padded = np.pad(box, 1).astype(np.float64)  # outlines close at the border
    lines = contour_generator(z=padded.T, name="serial", line_type=LineType.Separate).lines(LEVEL)
    return [_without_straight_points(np.asarray(line)[:-1] - 1 + start) for line in lines]


def _without_straight_points(polygon: Points) -> Points:
    """Leave out points between two others on a straight line: outlines run along the axes and diagonals only."""
    before, after = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return polygon[np.abs(turn) > 1e-9]


def filled(polygon: Points, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the voxels of a plane ``(columns, rows)`` whose centre is inside a polygon, by the even-odd rule."""
    inside = np.zeros(shape, bool)
    ends = np.roll(polygon, -1, axis=0)
    for (x0, y0), (x1, y1) in zip(polygon.tolist(), ends.tolist(), strict=True):
        first, stop = (max(0, int(np.ceil(y))) for y in sorted((y0, y1)))  # rows with first <= row < stop
        rows = np.arange(first, min(stop, shape[1]))
        crossings = x0 + (rows - y0) * (x1 - x0) / (y1 - y0) if len(rows) else rows
        inside[:, rows] ^= np.arange(shape[0])[:, None] > crossings
    return inside


def _to_index(points_lps: Points, grid: Grid) -> Points:
    """Map points (N, 3) in LPS+ mm to voxel indices."""
    return np.asarray((points_lps * LPS_TO_RAS - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T)
