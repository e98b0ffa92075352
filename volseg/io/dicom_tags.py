"""Tags and UIDs of DICOM, and the values of tags, which damaged files make fail in every possible way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from volseg.errors import DataError
from volseg.io.dicom_files import Member

if TYPE_CHECKING:
    from pydicom import Dataset

CLASSES = "1.2.840.10008.5.1.4.1.1."
SLICE_CLASSES = tuple(CLASSES + end for end in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130"))
"""CT, MR and PET: single slices, enhanced multi-frame and legacy converted enhanced multi-frame."""
STANDARD = "1.2.840.10008."
RT_DOSE = CLASSES + "481.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN)
JPEG = "1.2.840.10008.1.2.4."
JPEG_2000 = (JPEG + "90", JPEG + "91")
RLE = "1.2.840.10008.1.2.5"
COMPRESSED = (*(JPEG + end for end in ("50", "51", "57", "70", "80", "81", "90", "91")), RLE)
"""JPEG, JPEG-LS, JPEG 2000 and RLE, which GDCM decodes."""
GRAY = ("MONOCHROME1", "MONOCHROME2")
TRAITS = ("TemporalPositionIdentifier", "AcquisitionNumber", "AcquisitionTime", "ImageType")
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
ONE_SCAN = {
    "PatientID": "patients",
    "StudyInstanceUID": "studies",
    "FrameOfReferenceUID": "frames of reference",
    "Modality": "modalities",
    "EchoTime": "echo times",
    "Units": "units of the values",
    "RescaleType": "units of the values",
}
"""Tags that all slices of a scan share, and what different values stand for.

Others differ within a scan: AcquisitionNumber by rotation of the tube, bed position or concatenation, and the kernel,
kV and thickness of heads that were scanned in two parts.
"""
TAGS: tuple[str, ...] = (
    *("SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "InstanceNumber", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "ModalityLUTSequence"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(*PLANE, *TRAITS, *ONE_SCAN),
)
OVERLAY_POSITIONS = tuple(group << 16 | 0x0102 for group in range(0x6000, 0x6020, 2))
"""OverlayBitPosition: above 0 for overlays in unused bits of the pixels, as old scanners wrote them."""
PIXEL_DATA = 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF
LONG_VRS = (b"OB", b"OW", b"UN")


def value_of(dataset: Dataset, keyword: str, member: Member) -> Any:
    """Return the value of a tag, or ``None`` if it is missing or empty."""
    try:
        value = dataset.get(keyword)
        return None if value is None or (hasattr(value, "__len__") and not len(value)) else value
    except Exception as error:  # pydicom converts the value now, and damaged ones raise nearly every kind
        found = f"{type(error).__name__}: {str(error)[:200]}"
        hint = "export the series again"
        raise DataError(f"the tag {keyword} is corrupt", file=member.name, found=found, hint=hint) from error


def items_of(dataset: Dataset, keyword: str, member: Member) -> list[Dataset]:
    """Return the items of a sequence; none if it is missing."""
    value = value_of(dataset, keyword, member)
    if value is None:
        return []
    items = list(value) if isinstance(value, Sequence) else []
    if not items or not all(hasattr(item, "get") for item in items):
        raise invalid(keyword, type(value).__name__, member, "a sequence")
    return items


def invalid(keyword: str, value: object, member: Member, expected: str) -> DataError:
    """Return the error about a tag that is missing or has another value than expected."""
    problem = f"the tag {keyword} is missing" if value is None else f"the tag {keyword} is not valid"
    found = None if value is None else repr(value)[:200] if isinstance(value, int | float | str) else _text_of(value)
    hint = "correct the tag, or export the series again"
    if isinstance(value, str) and "," in value:
        hint = "write numbers with a decimal point, or export the series again"
    return DataError(problem, file=member.name, found=found, expected=expected, hint=hint)


def _text_of(value: object) -> str:
    """Return a value of any kind as text; damaged ones may fail to become text."""
    try:
        return str(value)[:200]
    except Exception:
        return type(value).__name__


def unsupported(member: Member, syntax: str) -> DataError:
    """Return the error that names a transfer syntax which is not read."""
    from pydicom.uid import UID

    return DataError(
        "the transfer syntax is not read",
        file=member.name,
        found=f"{UID(syntax).name} ({syntax})"[:200],
        expected="uncompressed, RLE, JPEG, JPEG-LS or JPEG 2000",
        hint="export the series uncompressed, or convert it, for example with gdcmconv --raw",
    )
