"""Pixels of DICOM slices: uncompressed ones as they lie in the file, compressed ones through GDCM (in SimpleITK)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from volseg.config.sizes import format_size
from volseg.errors import DataError, counted
from volseg.io.dicom_frames import Frame
from volseg.io.dicom_headers import Header, hide_warnings
from volseg.io.dicom_tags import COMPRESSED, JPEG_2000, RLE
from volseg.io.dicom_values import beyond, fill_padding, padding, significant
from volseg.io.remarks import remark

Array = NDArray[Any]

LARGEST_RATIO = 1000
"""Most bytes of a series for each compressed one; lossy JPEG 2000 reaches about 100."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
INT16 = np.iinfo(np.int16)
EXACT = 1 << 31  # larger slopes and intercepts are not computed in integers


def read_stack(frames: Sequence[Frame], path: Path) -> Array:
    """Read the values of slices: slope * stored + intercept of each.

    Args:
        frames: The slices, all of one size, in order.
        path: The series, for messages.

    Returns:
        ``(slices, rows, columns)``: int16 where all slopes and intercepts are whole numbers and all values fit, else
        float32.

    Raises:
        DataError: Pixels are truncated or damaged, or the header claims far more than the file can hold.
    """
    hide_warnings()
    _check_ratio(frames, path)
    whole = all(_is_whole(frame) for frame in frames)
    stack: Array = np.empty((len(frames), *frames[0].shape), np.int16 if whole else np.float32)
    indices = sorted(range(len(frames)), key=lambda index: (frames[index].header.member.name, frames[index].number))
    masks: dict[int, Array] = {}  # index -> packed bits of the padding
    wrapped: list[int] = []
    with tempfile.TemporaryDirectory(prefix="volseg_") as scratch:
        for _, group in groupby(indices, key=lambda index: frames[index].header.member.name):
            numbers = list(group)
            header = frames[numbers[0]].header
            stored = _stored(header, [frames[index].number for index in numbers], frames[0].shape, Path(scratch))
            for index, raw in zip(numbers, stored, strict=True):
                pixels = significant(raw, header)
                mask = padding(raw, pixels, header)
                if mask is not None:
                    masks[index] = np.packbits(mask)
                above = beyond(raw, pixels, header)
                if (above if mask is None else above & ~mask).any():
                    wrapped.append(index)
                stack = _with_values(stack, index, pixels, frames[index])
    if wrapped:
        first = frames[min(wrapped)]
        text = f"BitsStored {first.header.text('BitsStored')}; {counted(len(wrapped), 'slice')}, such as {first.name}"
        remark("unused-bits", path, text)
    fill_padding(stack, masks, frames[0].header.text("Modality"), path)
    return stack


def _is_whole(frame: Frame) -> bool:
    return all(number.is_integer() and abs(number) < EXACT for number in (frame.slope, frame.intercept))


def _with_values(stack: Array, index: int, pixels: Array, frame: Frame) -> Array:
    """Fill in the values of a slice; the stack becomes float32 if they do not fit in int16."""
    if stack.dtype == np.int16:
        slope, intercept = int(frame.slope), int(frame.intercept)
        ends = [int(end) * slope + intercept for end in (pixels.min(), pixels.max())]
        if min(ends) >= INT16.min and max(ends) <= INT16.max:
            stack[index] = pixels.astype(np.int32) * slope + intercept  # products may wrap around, and sums back again
            return stack
        stack = stack.astype(np.float32)
    with np.errstate(over="ignore"):  # infinite values are refused with those of all formats
        stack[index] = pixels * frame.slope + frame.intercept
    return stack


def _check_ratio(frames: Sequence[Frame], path: Path) -> None:
    """Compare what compressed files claim to hold with their size, before memory is taken."""
    headers = {frame.header.member.name: frame.header for frame in frames}
    if not any(header.transfer_syntax in COMPRESSED for header in headers.values()):
        return  # the length of uncompressed pixels was checked with the headers
    there = sum(header.pixels.size - header.pixels.offset for header in headers.values() if header.pixels is not None)
    claimed = sum(frame.shape[0] * frame.shape[1] * frame.header.integer("BitsAllocated") // 8 for frame in frames)
    if claimed > there * LARGEST_RATIO:
        raise DataError(
            "the header claims more pixels than the files can hold",
            file=path,
            found=f"{format_size(claimed)} in {format_size(there)} compressed",
            expected=f"at most {LARGEST_RATIO} times the size",
        )


def _stored(header: Header, numbers: Sequence[int], shape: tuple[int, int], scratch: Path) -> Iterator[Array]:
    """Yield the stored values of some frames of a file, ``(rows, columns)``, in ascending order of their numbers."""
    assert header.pixels is not None  # checked with the headers
    with header.member.open() as stream:
        if header.transfer_syntax in COMPRESSED:
            yield from _decoded(header, stream, numbers, shape, scratch)
            return
        dtype = _stored_type(header)
        size = shape[0] * shape[1] * dtype.itemsize
        for number in numbers:
            stream.seek(header.pixels.offset + number * size)
            content = stream.read(size)
            if len(content) < size:
                raise EOFError(f"frame {number + 1} has {len(content)} of {size} bytes")
            yield np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _stored_type(header: Header) -> np.dtype[Any]:
    kind = "i" if header.integer("PixelRepresentation", 0) else "u"
    return np.dtype(f"{'>' if header.big_endian else '<'}{kind}{header.integer('BitsAllocated') // 8}")


def _decoded(
    header: Header, stream: BinaryIO, numbers: Sequence[int], shape: tuple[int, int], scratch: Path
) -> Iterator[Array]:
    """Yield compressed frames, decoded."""
    from pydicom.encaps import generate_frames

    assert header.pixels is not None  # checked with the headers
    stream.seek(header.pixels.offset)
    length = header.pixels.length
    value = stream.read(header.pixels.size if length is None else length)
    count = header.integer("NumberOfFrames", 1)
    wanted = set(numbers)
    done = 0
    for number, frame in enumerate(generate_frames(value, number_of_frames=count)):
        if number in wanted:
            yield _decode(frame, header, shape, scratch)
            done += 1
    if done < len(numbers):
        raise EOFError(f"{done} of {len(numbers)} frames")


def _decode(frame: bytes, header: Header, shape: tuple[int, int], scratch: Path) -> Array:
    """Decode one frame with GDCM, which reads files only: one that holds nothing but the pixels and their type.

    The file states no slope, so that GDCM returns the stored values, and none of the tags that might be damaged.
    """
    import SimpleITK
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    size, precision = _codestream(frame)
    if size is not None and size != shape:
        raise ValueError(
            f"the compressed image has {size[0]} rows and {size[1]} columns, not {shape[0]} and {shape[1]}"
        )
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(header.transfer_syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(SECONDARY_CAPTURE), UID(f"{SECONDARY_CAPTURE}.1")
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = header.integer("BitsAllocated")
    dataset.BitsStored = header.integer("BitsStored", dataset.BitsAllocated)
    if header.transfer_syntax == RLE or (
        precision == dataset.BitsAllocated and header.transfer_syntax not in JPEG_2000
    ):
        dataset.BitsStored = dataset.BitsAllocated  # GDCM would cut off the others; see `significant`
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = header.integer("PixelRepresentation", 0)
    dataset.PixelData = encapsulate([frame])
    file = scratch / "frame.dcm"
    dataset.save_as(file, enforce_file_format=True)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    pixels: Array = SimpleITK.GetArrayFromImage(reader.Execute())
    pixels = pixels.reshape(pixels.shape[-2:]) if pixels.size == pixels.shape[-1] * pixels.shape[-2] else pixels
    if pixels.shape != shape or pixels.dtype.kind not in "iu":
        raise ValueError(f"decoded to {pixels.shape} of {pixels.dtype}, not {shape}")
    return pixels


def _codestream(frame: bytes) -> tuple[tuple[int, int] | None, int | None]:
    """Return rows and columns, and bits of JPEG and JPEG-LS, by the first markers of a codestream.

    They are compared with the header's, before a decoder takes memory. ``None`` where there is no such marker.
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(frame[at : at + size], "big")

    if frame[:4] == b"\xff\x4f\xff\x51":  # its length, capabilities, width, height, and offsets of both
        return (number(12, 4) - number(20, 4), number(8, 4) - number(16, 4)), None
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return (number(at + 5, 2), number(at + 7, 2)), frame[at + 4]
        else:
            at += 2 + number(at + 2, 2)
    return None, None
