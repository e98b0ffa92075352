"""Slices of DICOM files: the geometry and the scale that each states, alone or as a frame of a multi-frame file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, counted
from volseg.io.dicom_files import Member, named_errors
from volseg.io.dicom_headers import Header
from volseg.io.dicom_tags import (
    COMPRESSED,
    GRAY,
    PIXEL_DATA,
    PLANE,
    UNCOMPRESSED,
    invalid,
    items_of,
    unsupported,
    value_of,
)
from volseg.io.stored import HINT

if TYPE_CHECKING:
    from pydicom import Dataset

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A slice: a file, or a frame of a multi-frame file.

    Attributes:
        header: The header of its file.
        number: Which frame of the file, from 0.
        shape: Rows and columns.
        position_mm: Centre of the first pixel, LPS+, ``(3,)``.
        orientation: Directions in which columns and rows are counted, LPS+, ``(2, 3)``.
        spacing_mm: Distance of the rows, and of the columns.
        distance_mm: Stated distance of the slices (``SpacingBetweenSlices``).
        thickness_mm: Stated thickness.
        stated_slope: Factor from stored to real values.
        stated_intercept: What is added to them.
    """

    header: Header
    number: int
    shape: tuple[int, int]
    position_mm: FloatArray
    orientation: FloatArray
    spacing_mm: tuple[float, float]
    distance_mm: float | None
    thickness_mm: float | None
    stated_slope: float | None
    stated_intercept: float | None

    @property
    def slope(self) -> float:
        """The stated factor, or 1."""
        return 1.0 if self.stated_slope is None else self.stated_slope

    @property
    def intercept(self) -> float:
        """The stated number, or 0."""
        return 0.0 if self.stated_intercept is None else self.stated_intercept

    @property
    def name(self) -> str:
        """Name of its file and, of several frames, its number."""
        several = self.number > 0 or self.header.integer("NumberOfFrames", 1) > 1
        return self.header.member.short_name + (f" (frame {self.number + 1})" if several else "")


def read_frames(header: Header) -> list[Frame]:
    """Return the slices of a file.

    Raises:
        DataError: A tag is missing or invalid, or the pixels are missing, in colour, or stored in a way that is not
            read.
    """
    with named_errors(header.member.name):
        return _frames(header)


def _frames(header: Header) -> list[Frame]:
    member = header.member
    _check_pixels(header)
    count = header.integer("NumberOfFrames", 1)
    shared = items_of(header.dataset, "SharedFunctionalGroupsSequence", member)
    per_frame = items_of(header.dataset, "PerFrameFunctionalGroupsSequence", member)
    if count < 1 or (per_frame and len(per_frame) != count) or (count > 1 and not per_frame):
        found = f"{counted(count, 'frame')} and {counted(len(per_frame), 'description')} of frames"
        hint = "export the series as single slices, or as an enhanced multi-frame object"
        raise DataError("the frames have no positions", file=member.name, found=found, hint=hint)
    shape = header.integer("Rows"), header.integer("Columns")
    if min(shape) < 1:
        found = f"{counted(shape[0], 'row')}, {counted(shape[1], 'column')}"
        raise DataError("the slice is empty", file=member.name, found=found)
    _check_length(header, math.prod(shape) * count)
    frames = []
    for number in range(count):
        sources = [*per_frame[number : number + 1], *shared[:1]]
        values = _Values(header.dataset, sources, member)
        frames.append(_frame(header, number, shape, values))
    return frames


def _frame(header: Header, number: int, shape: tuple[int, int], values: _Values) -> Frame:
    member = header.member
    spacing_mm = values.numbers("PixelSpacing", 2)
    if spacing_mm.min() <= 0:
        raise invalid("PixelSpacing", spacing_mm.tolist(), member, "two positive numbers")
    slope = values.number("RescaleSlope")
    if slope == 0:
        raise invalid("RescaleSlope", slope, member, "a number other than 0")
    return Frame(
        header=header,
        number=number,
        shape=shape,
        position_mm=values.numbers("ImagePositionPatient", 3),
        orientation=values.numbers("ImageOrientationPatient", 6).reshape(2, 3),
        spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1])),
        distance_mm=abs(values.number("SpacingBetweenSlices") or 0) or None,  # some scanners count against the normal
        thickness_mm=abs(values.number("SliceThickness") or 0) or None,
        stated_slope=slope,
        stated_intercept=values.number("RescaleIntercept"),
    )


class _Values:
    """The values of a slice: of its file, or of the functional groups of its frame."""

    def __init__(self, dataset: Dataset, groups: Sequence[Dataset], member: Member) -> None:
        self._dataset = dataset
        self._groups = groups
        self._member = member

    def numbers(self, keyword: str, count: int) -> FloatArray:
        """Return the numbers of a tag.

        Raises:
            DataError: It is missing, has another count, or holds something that is not a finite number.
        """
        value = self._find(keyword)
        if value is None:
            hint = "export the series again without removing tags"
            raise DataError(f"the tag {keyword} is missing", file=self._member.name, hint=hint)
        try:
            numbers = np.array([float(one) for one in (value if isinstance(value, Sequence) else [value])])
        except (TypeError, ValueError):
            numbers = np.empty(0)
        if isinstance(value, str | bytes) or len(numbers) != count or not np.isfinite(numbers).all():
            raise invalid(keyword, value, self._member, f"{count} finite number{'s' * (count > 1)}")
        return numbers

    def number(self, keyword: str) -> float | None:
        """Return the number of a tag, or ``None`` if it is missing."""
        return None if self._find(keyword) is None else float(self.numbers(keyword, 1)[0])

    def _find(self, keyword: str) -> Any:
        """Return the value of a tag; of the frame's groups, then of those of all frames, then of the file."""
        for group in self._groups:
            for item in items_of(group, PLANE[keyword], self._member)[:1]:
                value = value_of(item, keyword, self._member)
                if value is not None:
                    return value
        return value_of(self._dataset, keyword, self._member)


def _check_pixels(header: Header) -> None:
    """Check that the pixels are there, and gray values of a kind that is read."""
    file, samples = header.member.name, header.integer("SamplesPerPixel", 1)
    if header.pixels is None:
        raise DataError("the file holds no pixel data, or is truncated", file=file, hint="export the series again")
    if header.pixels.tag != PIXEL_DATA:
        found = f"({header.pixels.tag >> 16:04X},{header.pixels.tag & 0xFFFF:04X})"
        raise DataError("the pixels are not whole numbers", file=file, found=found, expected="PixelData (7FE0,0010)")
    colours = header.text("PhotometricInterpretation")
    if samples != 1 or (colours and colours not in GRAY):
        found, expected = f"{colours}, {samples} values a pixel", "gray values: MONOCHROME2"
        hint = "give the series of the scan itself, not a screenshot or a map in colour"
        raise DataError("the image is in colour", file=file, found=found, expected=expected, hint=hint)
    bits = header.integer("BitsAllocated")
    stored = header.integer("BitsStored", bits)
    high = header.integer("HighBit", stored - 1)
    if bits not in (8, 16, 32) or not 1 <= stored <= high + 1 <= bits:
        found = f"BitsAllocated {bits}, BitsStored {stored}, HighBit {high}"
        raise DataError("the pixels are stored in a way that is not read", file=file, found=found, expected="8, 16, 32")
    if header.transfer_syntax and header.transfer_syntax not in UNCOMPRESSED + COMPRESSED:
        raise unsupported(header.member, header.transfer_syntax)
    if "ModalityLUTSequence" in header.dataset:
        hint = "export the series with RescaleSlope and RescaleIntercept"
        raise DataError("the values go through a lookup table, which is not read", file=file, hint=hint)


def _check_length(header: Header, pixels: int) -> None:
    """Compare the size that the header claims with the bytes that are there; compressed ones are bounded later."""
    element = header.pixels
    assert element is not None  # checked before
    compressed = header.transfer_syntax in COMPRESSED
    claimed = pixels * header.integer("BitsAllocated") // 8
    there = element.size - element.offset
    stated = there if compressed and element.length is None else element.length
    if stated is None:
        found = "frames of unknown length without a transfer syntax that compresses"
        raise DataError("the pixels are stored in a way that is not read", file=header.member.name, found=found)
    if there < stated or (not compressed and stated < claimed):
        raise DataError(
            "the file is truncated or corrupt: its pixels are shorter than its header says",
            file=header.member.name,
            found=f"{min(there, stated)} bytes",
            expected=f"{stated if compressed else max(claimed, stated)} bytes",
            hint=HINT,
        )
