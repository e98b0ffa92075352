"""Voxels as they lie in a file, compressed or not; what a header claims is compared with the file first."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from volseg.config.sizes import format_size
from volseg.errors import DataError

COMPRESSED = (".gz", ".mgz")
GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_RATIO = 1032  # deflate cannot shrink data to less than 1/1032 (https://zlib.net/zlib_tech.html)
BLOCK_BYTES = 1 << 20  # decompressed at a time
START_BYTES = 1 << 24  # memory for the voxels of a compressed file grows from here, as they are found
BROKEN = (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, OverflowError, zlib.error)
HINT = "copy the file again from its source, or export it again"


@contextmanager
def open_stream(path: Path, kind: str, whole: bool = False) -> Iterator[BufferedIOBase]:
    """Open a file; errors while opening it and while the block reads from it become a DataError.

    Args:
        path: The file; it is decompressed if its name says so.
        kind: Name of the format, for messages.
        whole: Read to the end of the file after the block, so that the checksum of a compressed file is verified.

    Yields:
        The file, decompressed, at its start.

    Raises:
        DataError: The file is missing, truncated, corrupt, or not compressed as its name says.
    """
    compressed = path.name.lower().endswith(COMPRESSED)
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
            if not start:
                raise EOFError("the file is empty (0 bytes)")
            if (start == GZIP_MAGIC) != compressed:
                ending = ".mgz" if path.name.lower().endswith(".mgz") else ".gz"
                state = f"is not compressed but named {ending}" if compressed else "is compressed but not named .gz"
                raise DataError(f"the file {state}", file=path, hint="rename it, or export it again")
            raw.seek(0)
            stream: BufferedIOBase = gzip.GzipFile(fileobj=raw) if compressed else raw  # closed with raw
            yield stream
            while whole and compressed and stream.read(BLOCK_BYTES):
                pass
    except PermissionError as error:
        raise DataError("reading the file is not permitted", file=path, hint="give read permission") from error
    except BROKEN as error:
        raise DataError(f"the file is truncated, corrupt or not {kind}", file=path, found=error, hint=HINT) from error
    except MemoryError as error:
        size = format_size(path.stat().st_size)
        hint = "close other programs, or crop the image"
        raise DataError("there is too little memory to read the file", file=path, found=size, hint=hint) from error


def stored_voxels(
    stream: BufferedIOBase, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int
) -> NDArray[Any]:
    """Read the voxels as stored, in Fortran order, once the header's claims are compared with the file.

    An uncompressed file is memory-mapped (copy on write).

    Args:
        stream: The file, from :func:`open_stream`.
        path: Its path.
        dtype: Type of a voxel.
        shape: Voxels along each axis.
        offset: First byte of the voxels.

    Raises:
        DataError: The file is shorter than its header says.
    """
    claimed, size = math.prod(map(int, shape)) * dtype.itemsize, path.stat().st_size
    compressed = isinstance(stream, gzip.GzipFile)
    if offset + claimed > size * (DEFLATE_RATIO if compressed else 1):
        raise _shorter(path, claimed, offset, f"{size} bytes{' compressed' if compressed else ''}")
    if not compressed:
        return np.asarray(np.memmap(stream, dtype, mode="c", offset=offset, shape=shape, order="F"))
    stream.seek(offset)
    content = np.empty(min(claimed, START_BYTES), np.uint8)
    done = 0
    while done < claimed:
        if done == len(content):
            content.resize(min(claimed, 2 * done), refcheck=False)
        count = stream.readinto(content[done : done + BLOCK_BYTES].data)
        if not count:
            raise _shorter(path, claimed, offset, f"{stream.tell()} bytes")
        done += count
    return np.ndarray(shape, dtype, content, order="F")


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in native byte order, at most float64, which is the widest that torch has."""
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype.newbyteorder("=")


def channels_first(data: NDArray[Any]) -> NDArray[Any]:
    """Return (X, Y, Z) or (X, Y, Z, C) as (C, X, Y, Z)."""
    return data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)


def check_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """Check that a shape is that of a volume, and return its first three axes.

    Raises:
        DataError: There are fewer than 3 or more than 4 axes, or one is empty.
    """
    if len(shape) not in (3, 4) or min(shape) < 1:
        hint = "save one volume, with its channels as the fourth axis"
        if len(shape) == 2:
            hint = "save it as a volume; a single slice as (columns, rows, 1)"
        expected = "(X, Y, Z), or (X, Y, Z, channels), each at least 1"
        raise DataError(f"this is not a volume: {len(shape)}D", file=path, found=shape, expected=expected, hint=hint)
    return shape[0], shape[1], shape[2]


def _shorter(path: Path, claimed: int, offset: int, found: str) -> DataError:
    return DataError(
        "the file is truncated or corrupt: it is shorter than its header says",
        file=path,
        found=found,
        expected=f"{claimed} bytes of voxels from byte {offset} on",
        hint=HINT,
    )
