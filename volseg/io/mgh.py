"""FreeSurfer's MGH and MGZ files; nibabel reads the header."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage
from numpy.typing import NDArray

from volseg.errors import DataError, GeometryError
from volseg.geometry.grid import Grid
from volseg.io.atomic import atomic_file
from volseg.io.stored import HINT, channels_first, check_shape, native, open_stream, stored_voxels

SUFFIXES = (".mgz", ".mgh")
KIND = "MGH"
HEADER_BYTES = 284
LABEL_TYPES = (np.uint8, np.int16, np.int32)  # the integers that MGH has
GEOMETRY = ("delta", "Mdc", "Pxyz_c")
DIRECTIONS_FLAG = slice(28, 30)  # goodRASFlag; nibabel would invent directions where it is 0
Header = Any  # nibabel's MGHHeader, which has no annotations


def read_voxels(path: Path) -> tuple[NDArray[Any], Grid]:
    """Read an image or mask with one or several frames, which are channels.

    Args:
        path: A ``.mgz`` (compressed) or ``.mgh`` file.

    Returns:
        ``(C, D, H, W)`` in the file's own axis order and stored type, and the grid.

    Raises:
        DataError: The file is missing, truncated, corrupt, of another kind or without a usable affine.
    """
    with open_stream(path, KIND, whole=True) as stream:
        header = _header(stream, path)
        grid = _grid(header, path)
        voxels = stored_voxels(stream, path, header.get_data_dtype(), header.get_data_shape(), header.get_data_offset())
        return channels_first(voxels.astype(native(voxels.dtype), copy=False)), grid


def read_grid(path: Path) -> Grid:
    """Read the grid from the header alone.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    with open_stream(path, KIND) as stream:
        return _grid(_header(stream, path), path)


def count_channels(path: Path) -> int:
    """Return the number of channels by the header alone.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    with open_stream(path, KIND) as stream:
        shape = _header(stream, path).get_data_shape()
    check_shape(tuple(int(size) for size in shape), path)
    return int(shape[3]) if len(shape) > 3 else 1


def files_of(path: Path) -> list[Path]:
    """Return the file."""
    return [path]


def write_voxels(
    path: Path, voxels: NDArray[Any], grid: Grid, source: Path | None, labels: Mapping[str, int] | None
) -> None:
    """Write ``(D, H, W)`` atomically, compressed if the name ends in ``.mgz``.

    Args:
        path: The file to write.
        voxels: Labels or values; integers are stored as the first of uint8, int16 and int32 that holds them, other
            values as float32.
        grid: Their grid.
        source: An MGH file on this grid, whose voxel sizes, directions and centre are copied, or ``None``.
        labels: Not stored: the format has no place for them.

    Raises:
        OutputError: The file cannot be written.
        DataError: The source cannot be read.
    """
    image = MGHImage(voxels.astype(_stored_type(voxels), copy=False), grid.affine)
    if source is not None:
        with open_stream(source, KIND) as stream:
            theirs = _header(stream, source)
        for name in GEOMETRY:
            image.header[name] = theirs[name]
    with atomic_file(path) as file:
        content = image.to_bytes()
        file.write(gzip.compress(content, 6, mtime=0) if path.suffix.lower() == ".mgz" else content)


def _stored_type(voxels: NDArray[Any]) -> type[np.generic]:
    if voxels.dtype.kind not in "iu":
        return np.float32
    low, high = int(voxels.min()), int(voxels.max())
    fitting = (dtype for dtype in LABEL_TYPES if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max)
    return next(fitting, np.float32)


def _header(stream: BufferedIOBase, path: Path) -> Header:
    """Read the header; its footer, with times and tags, is not needed."""
    start = stream.read(HEADER_BYTES)
    if len(start) < HEADER_BYTES:
        raise EOFError(f"the header has {len(start)} of {HEADER_BYTES} bytes")
    if start[DIRECTIONS_FLAG] != b"\0\1":
        hint = "write the directions into the header, for example with mri_convert"
        raise DataError("the header has no directions", file=path, found="goodRASFlag 0", expected=1, hint=hint)
    header = MGHHeader(start)
    try:
        header.get_data_dtype()
    except KeyError as error:
        found = f"type {int(header['type'])}"
        raise DataError("the type of the voxels is not known", file=path, found=found, hint=HINT) from error
    return header


def _grid(header: Header, path: Path) -> Grid:
    shape = check_shape(tuple(int(size) for size in header.get_data_shape()), path)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # sizes beyond float32, which Grid refuses
            return Grid(shape, np.array(header.get_affine(), np.float64))
    except GeometryError as error:
        raise DataError("the header has no usable affine", file=path, found=error.in_short, hint=HINT) from error
