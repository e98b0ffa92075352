"""Headers of DICOM files, read with pydicom: what kind of object a file is, and where its pixels are."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

from volseg.errors import DataError
from volseg.io.dicom_files import Member, is_index
from volseg.io.dicom_tags import (
    DEFLATED,
    LONG_VRS,
    OVERLAY_POSITIONS,
    RT_DOSE,
    SLICE_CLASSES,
    STANDARD,
    TAGS,
    UNDEFINED_LENGTH,
    invalid,
    unsupported,
    value_of,
)

if TYPE_CHECKING:
    from pydicom import Dataset


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

    @cached_property
    def is_slice(self) -> bool:
        """Whether it is one slice or several of a volume: no localizer, report, screenshot or mask."""
        if is_index(self.member) or "LOCALIZER" in self.text("ImageType").upper():
            return False
        return self.sop_class in SLICE_CLASSES or (self.has_position and self.sop_class != RT_DOSE)

    @property
    def has_position(self) -> bool:
        """Whether it states a position, as slices of any kind do."""
        return "ImagePositionPatient" in self.dataset

    @cached_property
    def has_overlay(self) -> bool:
        """Whether an overlay lies in bits of the pixels that their values leave unused."""
        present = [tag for tag in OVERLAY_POSITIONS if tag in self.dataset]
        try:
            return any(self.dataset[tag].value for tag in present)
        except Exception:  # of damaged tags; see `text`
            return False

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
        value = value_of(self.dataset, keyword, self.member)
        if value is None and default is not None:
            return default
        try:
            return int(value if isinstance(value, int | str) else "")
        except ValueError as error:
            raise invalid(keyword, value, self.member, "a whole number") from error


def read_header(member: Member) -> Header:
    """Read the header of a file, up to its pixels.

    Raises:
        DataError: The file is empty, damaged, or compressed as a whole, which hides its size.
    """
    from pydicom import Dataset
    from pydicom.filereader import dcmread, read_dataset, read_preamble
    from pydicom.tag import Tag

    hide_warnings()
    with member.open() as stream:
        read_preamble(stream, force=True)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        syntax, meta_class = (str(meta.get(key) or "") for key in ("TransferSyntaxUID", "MediaStorageSOPClassUID"))
        if syntax == DEFLATED:  # reading it would take memory of unknown size
            if meta_class in SLICE_CLASSES or not _is_known(meta_class):
                raise unsupported(member, syntax)
            return Header(member, Dataset(), meta_class, syntax, False, None)
        stream.seek(0)
        tags = [*map(Tag, TAGS), *map(Tag, OVERLAY_POSITIONS)]
        dataset = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
        little = dataset.original_encoding[1] is not False
        header = Header(member, dataset, "", syntax, not little, _pixel_element(stream, little))
        header = replace(header, sop_class=header.text("SOPClassUID") or meta_class)
    if not header.is_slice and not is_index(member) and not _is_known(header.sop_class):
        problem = "the file is truncated or corrupt, or no DICOM object: its SOPClassUID is missing or not known"
        hint = "copy it again from its source, or remove it if it is no slice"
        raise DataError(problem, file=member.name, found=repr(header.sop_class)[:100], hint=hint)
    return header


def _is_known(sop_class: str) -> bool:
    """Return whether a kind of object is one of the standard's or of a manufacturer; damaged slices are neither."""
    from pydicom.uid import UID

    uid = UID(sop_class)
    is_of_manufacturer = uid.is_valid and uid.is_private and sop_class.count(".") > 4
    return bool(uid.type) or (is_of_manufacturer and not sop_class.startswith(STANDARD[:6]))


def hide_warnings() -> None:
    """Hide pydicom's warnings: what is wrong with a file is either harmless or becomes an error.

    A filter for one module is added once; `warnings.catch_warnings` would not be safe in the threads of a prediction.
    """
    warnings.filterwarnings("ignore", module=r"pydicom\b")


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
