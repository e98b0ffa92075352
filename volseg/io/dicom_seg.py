"""Masks as DICOM Segmentation objects, written by highdicom for the series that was segmented."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import OutputError
from volseg.extras import import_extra
from volseg.geometry.grid import Grid
from volseg.io.atomic import atomic_file
from volseg.io.dicom_codes import class_codes, dicom_text
from volseg.io.dicom_files import named_errors
from volseg.io.dicom_source import MAKER, VALUE_TEXT, Source, label_value, mark, read_marked, read_source, series_number
from volseg.io.label_table import label_colour
from volseg.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

SUFFIXES = (".seg.dcm",)
KIND = "SEG"
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def libraries() -> ModuleType:
    """Import highdicom.

    Raises:
        MissingExtraError: The extra ``dicom`` is not installed.
    """
    return import_extra("highdicom", "dicom", "--format dicom-seg")


def write_voxels(
    path: Path, voxels: NDArray[Any], grid: Grid, source: Path | None, labels: Mapping[str, int] | None
) -> None:
    """Write a binary segmentation atomically: one segment per class that has voxels, without empty frames.

    highdicom copies patient and study from the series. A log line names the classes without voxels; a mask without any
    holds the first class with empty frames, because an object without segments is not valid.

    Args:
        path: The ``.seg.dcm`` file to write.
        voxels: Labels ``(D, H, W)``.
        grid: Their grid.
        source: The series: a folder, a zip or a file of it.
        labels: Name -> value.

    Raises:
        MissingExtraError: The extra ``dicom`` is not installed.
        OutputError: The file cannot be written, or there is no series.
        GeometryError: The mask is not on the grid of the series.
    """
    highdicom = libraries()
    series = read_source(path, voxels, grid, source, labels)
    if series.empty:
        logger.info("%s: no voxels, hence no segments: %s", path, ", ".join(series.empty))
    try:
        segmentation = _segmentation(highdicom, series)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        hint = "choose another format, or repair the headers of the series"
        raise OutputError("the series cannot be referenced", file=source, found=error, hint=hint) from error
    mark(segmentation, series.grid)
    with atomic_file(path) as file:
        segmentation.save_as(file)


def read_voxels(path: Path) -> tuple[NDArray[Any], Grid]:
    """Read a segmentation that volseg wrote, as label values on the grid of its series.

    Raises:
        DataError: The file is damaged, of another kind, or was not written by volseg.
    """
    dataset, grid = read_marked(path, KIND)
    with named_errors(path):
        values = {
            int(segment.SegmentNumber): label_value(segment.get("SegmentDescription", ""), int(segment.SegmentNumber))
            for segment in dataset.SegmentSequence
        }
        labels = np.zeros(grid.shape, np.uint16)
        pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        to_index = np.linalg.inv(grid.affine)
        for frame, groups in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
            if not frame.any():
                continue
            position = LPS_TO_RAS * np.array(groups.PlanePositionSequence[0].ImagePositionPatient, np.float64)
            slice_index = round(float(to_index[2] @ [*position, 1]))
            value = values[int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
            labels[:, :, slice_index][frame.T != 0] = value
    return labels[None], grid


def read_grid(path: Path) -> Grid:
    """Read the grid of the series from the header.

    Raises:
        DataError: As ``read_voxels``.
    """
    return read_marked(path, KIND, pixels=False)[1]


def count_channels(path: Path) -> int:
    """Return 1: a mask has one channel."""
    return 1


def files_of(path: Path) -> list[Path]:
    """Return the file."""
    return [path]


def _segmentation(highdicom: ModuleType, series: Source) -> Dataset:
    """Return the object; segments are numbered from 1 in the order of the classes."""
    classes = series.classes or dict(list(series.empty.items())[:1]) or {"mask": 1}
    numbers = np.zeros(max(classes.values()) + 1, np.uint8 if len(classes) < 256 else np.uint16)
    numbers[list(classes.values())] = np.arange(1, len(classes) + 1)
    segments = [
        _description(highdicom, number, name, value) for number, (name, value) in enumerate(classes.items(), start=1)
    ]
    dataset: Dataset = highdicom.seg.Segmentation(
        source_images=series.headers,
        pixel_array=np.ascontiguousarray(numbers[series.labels].transpose(2, 1, 0)),  # (slices, rows, columns)
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=series_number(series, 1),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=__version__,
        device_serial_number="0",
        omit_empty_frames=bool(series.classes),
    )
    return dataset


def _description(highdicom: ModuleType, number: int, name: str, value: int) -> Dataset:
    """Return the description of a segment: name, codes, colour and label value."""
    from pydicom.sr.codedict import codes

    found = class_codes(name, value)
    algorithm = highdicom.AlgorithmIdentificationSequence(MAKER, codes.DCM.ArtificialIntelligence, __version__)
    description: Dataset = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=dicom_text(name),
        segmented_property_category=found.category,
        segmented_property_type=found.kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * share) for share in label_colour(value))),
    )
    description.SegmentDescription = VALUE_TEXT.format(value)
    if found.side is not None:
        side = highdicom.sr.CodedConcept.from_code(found.side)
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return description
