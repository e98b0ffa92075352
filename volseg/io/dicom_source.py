"""The series that a DICOM mask refers to, and what volseg stores in such masks to read them back on its grid."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, GeometryError, OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.ops import in_order_of
from volseg.io import dicom
from volseg.io.dicom_files import named_errors
from volseg.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset

PRIVATE_GROUP, PRIVATE_CREATOR, GRID_ELEMENT = 0x4099, "VOLSEG", 0x01
"""Where the grid is stored: behind the contours, so that a truncated file has none."""
VALUE_TEXT = "label value {}"
VALUE = re.compile(r"label value (\d+)")
MAKER = "volseg"
UIDS = {
    "StudyInstanceUID": "find its study",
    "SeriesInstanceUID": "find its series",
    "SOPInstanceUID": "find its slices",
    "FrameOfReferenceUID": "place it",
}
"""What a mask refers to, and why."""
REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""What every object of a patient and study states, at least as empty; anonymised series may lack it."""


@dataclass(frozen=True)
class Source:
    """A series and the labels on its grid.

    Attributes:
        headers: Headers of the slices, in order.
        grid: Grid of ``(columns, rows, slices)``.
        labels: The mask in this order.
        classes: Name -> value of the classes that have voxels.
        empty: Name -> value of those that have none.
    """

    headers: list[Dataset]
    grid: Grid
    labels: NDArray[np.integer]
    classes: dict[str, int]
    empty: dict[str, int]


def read_source(
    path: Path, voxels: NDArray[Any], grid: Grid, source: Path | None, labels: Mapping[str, int] | None
) -> Source:
    """Read the headers of the series, and bring the mask into the order of its slices.

    Args:
        path: The file that is going to be written, for messages.
        voxels: Labels ``(D, H, W)``.
        grid: Their grid.
        source: The series: a folder, a zip or a file of it.
        labels: Name -> value; values without a name are called ``label <value>``.

    Raises:
        OutputError: There is no series, it is multi-frame, or the voxels are not labels.
        GeometryError: The mask is not on the grid of the series.
    """
    if labels is None:
        raise OutputError("this format holds masks only", file=path, hint="write .nii.gz")
    if source is None or not dicom.is_series(source):
        raise OutputError(
            "a mask in DICOM needs the series that was segmented",
            file=path,
            found=source or "no series",
            expected=dicom.EXPECTED,
            hint="predict the series, or choose another format",
        )
    headers, series_grid = dicom.series_headers(source), dicom.read_grid(source)
    if len(headers) != series_grid.shape[2]:
        hint = "choose another format, or convert the series to single-frame objects"
        raise OutputError("masks in DICOM are not written for multi-frame objects", file=source, hint=hint)
    for name, purpose in UIDS.items():
        missing = sum(not header.get(name) for header in headers)
        if missing:
            raise OutputError(
                f"a mask in DICOM needs the tag {name}, by which viewers {purpose}",
                file=source,
                found=f"no such tag in {missing} of {len(headers)} slices",
                hint="choose another format, or add the tag to all slices of the series",
            )
    for header in headers:
        for name in REQUIRED:
            if name not in header:
                setattr(header, name, "")
    (ordered,), order = in_order_of(voxels[None], grid, series_grid)
    if not order.same_as(series_grid):
        found, expected = grid.describe(), series_grid.describe()
        raise GeometryError("the mask is not on the grid of its series", file=source, found=found, expected=expected)
    values = set(np.unique(ordered).tolist())
    names = {name: value for name, value in labels.items() if value != 0}
    unnamed = sorted(values - {0, *names.values()})
    names |= {f"label {value}": value for value in unnamed}
    present = {name: value for name, value in names.items() if value in values}
    empty = {name: value for name, value in names.items() if name not in present}
    return Source(headers, series_grid, ordered, present, empty)


def series_number(source: Source, number: int) -> int:
    """Return a number for a new series, derived from that of the source."""
    return int(source.headers[0].get("SeriesNumber") or 0) % 10**6 * 100 + number


def mark(dataset: Dataset, grid: Grid) -> None:
    """Name the maker, and store the grid as a private element, for reading the mask back with its empty slices."""
    dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    dataset.Manufacturer = dataset.ManufacturerModelName = MAKER
    dataset.SoftwareVersions = __version__
    dataset.SeriesDescription = "volseg segmentation"
    block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    block.add_new(GRID_ELEMENT, "UT", json.dumps(grid.to_dict()))


def read_marked(path: Path, kind: str, *, pixels: bool = True) -> tuple[Dataset, Grid]:
    """Read a mask in DICOM that volseg wrote, and its grid.

    Raises:
        DataError: The file is damaged, of another kind, or was not written by volseg.
    """
    from pydicom import dcmread

    with named_errors(path):
        dataset = dcmread(path, stop_before_pixels=not pixels)
        blocks = dataset.group_dataset(PRIVATE_GROUP)
        if not blocks:
            problem, hint = "masks in DICOM are read only if volseg wrote them", "convert it to .nii.gz or .seg.nrrd"
            raise DataError(problem, file=path, found="no grid of volseg, or a truncated file", hint=hint)
        element = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[GRID_ELEMENT].value
        text = element.decode() if isinstance(element, bytes) else str(element)  # bytes where types are implicit
        grid, found = Grid.from_dict(json.loads(text)), dataset.Modality
    if found != kind:
        raise DataError("the file is another kind of DICOM object", file=path, found=found, expected=kind)
    return dataset, grid


def label_value(text: str, default: int) -> int:
    """Return the label value that a description states."""
    match = VALUE.search(text)
    return int(match[1]) if match else default
