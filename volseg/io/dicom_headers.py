"""Headers of DICOM files, read with pydicom: which files are slices, and what each slice states."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError
from volseg.io.dicom_files import Member, is_index, named_errors

if TYPE_CHECKING:
    from pydicom import Dataset

FloatArray = NDArray[np.float64]

CLASSES = "1.2.840.10008.5.1.4.1.1."
SLICE_CLASSES = tuple(CLASSES + end for end in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130"))
"""CT, MR and PET: single slices, enhanced multi-frame and legacy converted enhanced multi-frame."""
STANDARD = "1.2.840.10008."
RT_DOSE = CLASSES + "481.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN)
JPEG = "1.2.840.10008.1.2.4."
COMPRESSED = (*(JPEG + end for end in ("50", "51", "57", "70", "80", "81", "90", "91")), "1.2.840.10008.1.2.5")
"""JPEG, JPEG-LS, JPEG 2000 and RLE, which GDCM decodes."""
GRAY = ("MONOCHROME1", "MONOCHROME2")
TRAITS = ("EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "AcquisitionTime", "ImageType")
"""What usually differs between two slices at one position."""
PLANE = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
"""Where multi-frame objects hold what a single slice states (DICOM PS3.3, C.7.6.16.2)."""
TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "InstanceNumber", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(*PLANE, *TRAITS),
)
PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF
LONG_VRS = (b"OB", b"OW", b"UN")


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels of a file are.

    Attributes:
        tag: The element's tag; there are others for floating-point pixels.
        offset: First byte of its value.
        length: Bytes of its value; ``None`` for compressed frames, which have no stated length.
        size: Bytes of the file.
    """

    tag: int
    offset: int
    length: int | None
    size: int


@dataclass(frozen=True)
class Header:
    """The header of a DICOM file.

    Attributes:
        member: The file.
        dataset: Those of ``TAGS`` that it holds.
        sop_class: UID of the kind of object.
        transfer_syntax: UID of how the pixels are stored; empty if it is not stated.
        big_endian: Byte order of the pixels.
        pixels: Where they are; ``None`` if there are none.
    """

    member: Member
    dataset: Dataset
    sop_class: str
    transfer_syntax: str
    big_endian: bool
    pixels: PixelElement | None

    @property
    def series(self) -> str:
        """SeriesInstanceUID; empty if it is not stated."""
        return self.text("SeriesInstanceUID")

    @property
    def kind(self) -> str:
        """Name of the kind of object, such as ``CT Image Storage``."""
        from pydicom.uid import UID

        return UID(self.sop_class).name

    @property
    def is_slice(self) -> bool:
        """Whether it is one slice or several of a volume: no localizer, report, screenshot or mask."""
        if is_index(self.member) or "LOCALIZER" in self.text("ImageType").upper():
            return False
        return self.sop_class in SLICE_CLASSES or (self.has_position and self.sop_class != RT_DOSE)

    @property
    def has_position(self) -> bool:
        """Whether it states a position, as slices of any kind do."""
        return "ImagePositionPatient" in self.dataset

    def text(self, keyword: str) -> str:
        """Return the value of a tag as text; empty if it is missing or has no valid value."""
        try:
            value = self.dataset.get(keyword)
        except Exception:  # pydicom converts the value now, and damaged ones raise nearly every kind
            return ""
        return "" if value is None else str(value).strip("\0 ")

    def integer(self, keyword: str, default: int | None = None) -> int:
        """Return the value of a tag that holds a whole number.

        Raises:
            DataError: It is missing, and there is no default; or it is something else.
        """
        value = _value(self.dataset, keyword, self.member)
        if value is None and default is not None:
            return default
        try:
            return int(value if isinstance(value, int | str) else "")
        except ValueError as error:
            raise _invalid(keyword, value, self.member, "a whole number") from error


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
        thickness_mm: Distance of the slices or, where that is not stated, their thickness.
        slope: Factor from stored to real values.
        intercept: What is added to them.
    """

    header: Header
    number: int
    shape: tuple[int, int]
    position_mm: FloatArray
    orientation: FloatArray
    spacing_mm: tuple[float, float]
    thickness_mm: float | None
    slope: float
    intercept: float

    @property
    def name(self) -> str:
        """Name of its file and, of several frames, its number."""
        several = self.number > 0 or self.header.integer("NumberOfFrames", 1) > 1
        return self.header.member.short_name + (f" (frame {self.number + 1})" if several else "")


def read_header(member: Member) -> Header:
    """Read the header of a file, up to its pixels.

    Raises:
        DataError: The file is empty, damaged, or compressed as a whole, which hides its size.
    """
    from pydicom.filereader import dcmread, read_dataset, read_preamble

    hide_warnings()
    with member.open() as stream:
        read_preamble(stream, force=True)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        syntax = str(meta.get("TransferSyntaxUID") or "")
        if syntax == DEFLATED:
            raise _unsupported_syntax(member, syntax)
        stream.seek(0)
        dataset = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(TAGS))
        little = dataset.original_encoding[1] is not False
        header = Header(member, dataset, "", syntax, not little, _pixel_element(stream, little))
        header = replace(header, sop_class=header.text("SOPClassUID") or str(meta.get("MediaStorageSOPClassUID") or ""))
    if not header.is_slice and not is_index(member) and not _is_known(header.sop_class):
        problem = "the file is truncated or corrupt, or no DICOM object: its SOPClassUID is missing or not known"
        hint = "copy it again from its source, or remove it if it is no slice"
        raise DataError(problem, file=member.name, found=repr(header.sop_class)[:100], hint=hint)
    return header


def _is_known(sop_class: str) -> bool:
    """Return whether a kind of object is one of the standard's or of a manufacturer; damaged slices are neither."""
    from pydicom.uid import UID

    uid = UID(sop_class)
    return bool(uid.type) or (uid.is_valid and uid.is_private and not sop_class.startswith(STANDARD[:6]))


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
    shared = _items(header.dataset, "SharedFunctionalGroupsSequence", member)
    per_frame = _items(header.dataset, "PerFrameFunctionalGroupsSequence", member)
    if count < 1 or (per_frame and len(per_frame) != count) or (count > 1 and not per_frame):
        found = f"{count} frames and {len(per_frame)} descriptions of frames"
        hint = "export the series as single slices, or as an enhanced multi-frame object"
        raise DataError("the frames have no positions", file=member.name, found=found, hint=hint)
    shape = header.integer("Rows"), header.integer("Columns")
    if min(shape) < 1:
        raise DataError("the slice is empty", file=member.name, found=f"{shape[0]} rows, {shape[1]} columns")
    _check_length(header, math.prod(shape) * count)
    frames = []
    for number in range(count):
        sources = [*per_frame[number : number + 1], *shared[:1]]
        values = _Values(header.dataset, sources, member)
        frames.append(_frame(header, number, shape, values))
    return frames


def hide_warnings() -> None:
    """Hide pydicom's warnings: what is wrong with a file is either harmless or becomes an error.

    A filter for one module is added once; `warnings.catch_warnings` would not be safe in the threads of a prediction.
    """
    warnings.filterwarnings("ignore", module=r"pydicom\b")


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
            raise _invalid(keyword, value, self._member, f"{count} finite number{'s' * (count > 1)}")
        return numbers

    def number(self, keyword: str, default: float | None) -> float | None:
        """Return the number of a tag, or the default if it is missing."""
        return default if self._find(keyword) is None else float(self.numbers(keyword, 1)[0])

    def _find(self, keyword: str) -> Any:
        """Return the value of a tag; of the frame's groups, then of those of all frames, then of the file."""
        for group in self._groups:
            for item in _items(group, PLANE[keyword], self._member)[:1]:
                value = _value(item, keyword, self._member)
                if value is not None:
                    return value
        return _value(self._dataset, keyword, self._member)


def _frame(header: Header, number: int, shape: tuple[int, int], values: _Values) -> Frame:
    member = header.member
    spacing_mm = values.numbers("PixelSpacing", 2)
    if spacing_mm.min() <= 0:
        raise _invalid("PixelSpacing", spacing_mm.tolist(), member, "two positive numbers")
    thickness_mm = values.number("SpacingBetweenSlices", None)
    if not thickness_mm:
        thickness_mm = values.number("SliceThickness", None)
    slope = values.number("RescaleSlope", 1.0)
    intercept = values.number("RescaleIntercept", 0.0)
    if not slope or intercept is None:
        raise _invalid("RescaleSlope", slope, member, "a number other than 0")
    return Frame(
        header=header,
        number=number,
        shape=shape,
        position_mm=values.numbers("ImagePositionPatient", 3),
        orientation=values.numbers("ImageOrientationPatient", 6).reshape(2, 3),
        spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1])),
        thickness_mm=abs(thickness_mm) if thickness_mm else None,  # some scanners count against the normal
        slope=slope,
        intercept=intercept,
    )


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
        raise _unsupported_syntax(header.member, header.transfer_syntax)
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
            hint="copy the file again from its source, or export it again",
        )


def _pixel_element(stream: BinaryIO, little: bool) -> PixelElement | None:
    """Return where the pixels are, once the stream stands at the first element that pydicom has not read."""
    begin = stream.tell()
    start = stream.read(12)
    stream.seek(0, 2)
    size = stream.tell()
    if len(start) < 8:
        return None
    order = "<" if little else ">"
    group, element = struct.unpack(f"{order}HH", start[:4])
    if start[4:6] in LONG_VRS and len(start) == 12:
        offset, length = 12, struct.unpack(f"{order}L", start[8:12])[0]
    else:
        offset, length = 8, struct.unpack(f"{order}L", start[4:8])[0]
    return PixelElement(group << 16 | element, begin + offset, None if length == UNDEFINED_LENGTH else length, size)


def _value(dataset: Mapping[Any, Any] | Dataset, keyword: str, member: Member) -> Any:
    """Return the value of a tag, or ``None`` if it is missing or empty."""
    try:
        value = dataset.get(keyword)
        return None if value is None or (hasattr(value, "__len__") and not len(value)) else value
    except Exception as error:  # pydicom converts the value now, and damaged ones raise nearly every kind
        found = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"the tag {keyword} is corrupt", file=member.name, found=found) from error


def _items(dataset: Dataset, keyword: str, member: Member) -> list[Dataset]:
    """Return the items of a sequence; none if it is missing."""
    value = _value(dataset, keyword, member)
    if value is None:
        return []
    items = list(value) if isinstance(value, Sequence) else []
    if not items or not all(hasattr(item, "get") for item in items):
        raise _invalid(keyword, type(value).__name__, member, "a sequence")
    return items


def _invalid(keyword: str, value: object, member: Member, expected: str) -> DataError:
    problem = f"the tag {keyword} is missing" if value is None else f"the tag {keyword} is not valid"
    found = None if value is None else repr(value)[:200] if isinstance(value, int | float | str) else _kind_of(value)
    return DataError(problem, file=member.name, found=found, expected=expected)


def _kind_of(value: object) -> str:
    """Return a value of any kind as text; damaged ones may fail to become text."""
    try:
        return str(value)[:200]
    except Exception:
        return type(value).__name__


def _unsupported_syntax(member: Member, syntax: str) -> DataError:
    from pydicom.uid import UID

    return DataError(
        "the transfer syntax is not read",
        file=member.name,
        found=f"{UID(syntax).name} ({syntax})"[:200],
        expected="uncompressed, RLE, JPEG, JPEG-LS or JPEG 2000",
        hint="export the series uncompressed, or convert it, for example with gdcmconv --raw",
    )
