"""NIfTI-1 and NIfTI-2 files through nibabel; damaged files become errors, masks get the header of their scan."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from volseg.errors import DataError, GeometryError
from volseg.geometry.grid import Grid
from volseg.io.atomic import atomic_file

SUFFIXES = (".nii.gz", ".nii")
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: metre, millimetre, micron; unknown is taken as mm
GZIP_MAGIC = b"\x1f\x8b"
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
BROKEN = (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, zlib.error)

# nibabel's Nifti1Image and Nifti1Header (the NIfTI-2 classes are subclasses); its annotations are incomplete
Image = Any
Header = Any


def read_voxels(path: Path) -> tuple[NDArray[Any], Grid]:
    """Read an image or mask with 3 axes, or 4 with the channels last.

    Values keep their stored type unless the header scales them (``scl_slope``, ``scl_inter``); scaled values become
    float32, or float64 if float32 cannot represent the stored type. An uncompressed file is memory-mapped.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.

    Returns:
        ``(C, D, H, W)`` in the file's own axis order, and the grid.

    Raises:
        DataError: The file is missing, truncated, corrupt, not NIfTI, of other dimensions or without a usable affine.
    """
    with _opened(path, whole=True) as image:
        grid = _grid(image, path)
        proxy = image.dataobj
        if proxy.dtype.kind not in "iuf":
            raise DataError(
                "the voxels are not plain numbers", file=path, found=proxy.dtype, expected="one number per voxel"
            )
        if (proxy.slope, proxy.inter) == (1, 0):
            data = np.asarray(proxy.get_unscaled())
        else:
            wide = np.float32 if np.can_cast(proxy.dtype, np.float32) else np.float64
            data = np.asarray(image.get_fdata(caching="unchanged", dtype=wide))
    data = data.astype(_native(data.dtype), copy=False)
    return (data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)), grid


def read_grid(path: Path) -> Grid:
    """Read the grid from the header alone.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    with _opened(path) as image:
        return _grid(image, path)


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in native byte order, at most float64, which is the widest that torch has."""
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype.newbyteorder("=")


@contextmanager
def _opened(path: Path, whole: bool = False) -> Iterator[Image]:
    """Open a file; errors while opening it and while the block reads from it become a DataError.

    Args:
        path: The file.
        whole: Read to the end of the file after the block, so that the checksum of a compressed file is verified.
    """
    compressed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
            if not start:
                raise EOFError("the file is empty (0 bytes)")
            if (start == GZIP_MAGIC) != compressed:
                state = "is not compressed but named .gz" if compressed else "is compressed but not named .gz"
                raise DataError(f"the file {state}", file=path, hint="rename it, or export it again")
            raw.seek(0)
            stream = cast(BinaryIO, gzip.open(raw)) if compressed else raw  # noqa: SIM115  (closed with raw)
            yield _image(stream)
            while whole and compressed and stream.read(1 << 20):
                pass
    except PermissionError as error:
        raise DataError("reading the file is not permitted", file=path, hint="give read permission") from error
    except BROKEN as error:
        hint = "copy the file again from its source, or export it again"
        raise DataError("the file is truncated, corrupt or not NIfTI", file=path, found=error, hint=hint) from error


def _image(stream: BinaryIO) -> Image:
    """Detect NIfTI-1 or NIfTI-2 from the header."""
    start = stream.read(HEADER_BYTES)
    stream.seek(0)
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        if kind.header_class.may_contain_header(start):
            return kind.from_file_map({"image": FileHolder(fileobj=cast(Any, stream))})
    raise ImageFileError(f"no NIfTI header in the first {len(start)} bytes")


def _grid(image: Image, path: Path) -> Grid:
    """Return the grid by sform (if its code is set), else by qform, else by voxel sizes; converted to mm."""
    shape = image.shape
    if len(shape) not in (3, 4) or 0 in shape:
        hint = "save it as a volume; a single slice as (columns, rows, 1)" if len(shape) == 2 else None
        expected = "(X, Y, Z), or (X, Y, Z, channels), none of them 0"
        raise DataError(f"this is not a volume: {len(shape)}D", file=path, found=shape, expected=expected, hint=hint)
    header = image.header
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    try:
        return Grid((shape[0], shape[1], shape[2]), affine)
    except GeometryError as error:
        hint = "write the right sform or qform into the header"
        raise DataError("the header has no usable affine", file=path, found=error.problem, hint=hint) from error


def header_like(source: Path) -> Header:
    """Copy a scan's header for a mask on its grid; sform, qform, codes, voxel sizes and units are bitwise identical.

    Fields about the scan's values (scaling, display range, intent, description) are reset. Extensions are not copied
    because they may name the patient.

    Raises:
        DataError: The source cannot be read.
    """
    with _opened(source) as image:
        stream = image.file_map["image"].fileobj
        stream.seek(0)
        header = image.header_class.from_fileobj(
            stream, check=False
        )  # the check would change fields, such as a qfac of 0
        header = header.as_byteswapped(nibabel.volumeutils.native_code)
    for key in ("cal_min", "cal_max", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[key] = 0
    header["intent_name"] = header["aux_file"] = b""
    return header


def header_of(grid: Grid) -> Header:
    """Make a NIfTI-1 header in mm: the affine as sform (rounded to float32), and as qform if it has no shear."""
    header = nibabel.Nifti1Header(endianness=nibabel.volumeutils.native_code)
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code="scanner")
    header.set_qform(grid.affine, code="scanner", strip_shears=True)
    if not Grid(grid.shape, header.get_qform()).same_as(grid):
        header["qform_code"] = 0
    return header


def write_voxels(path: Path, voxels: NDArray[Any], grid: Grid, source: Path | None, description: str) -> None:
    """Write ``(D, H, W)`` atomically, compressed if the name ends in ``.gz``.

    Args:
        path: The file to write.
        voxels: Labels or values, in the type to store.
        grid: Their grid.
        source: A NIfTI file on this grid whose header is copied, or ``None``.
        description: What the file is, at most 79 characters.

    Raises:
        OutputError: The file cannot be written.
        DataError: The source cannot be read.
    """
    header = header_of(grid) if source is None else header_like(source)
    header.set_data_dtype(voxels.dtype)
    pixdim = header["pixdim"].copy()
    header.set_data_shape(voxels.shape)
    header["pixdim"] = pixdim  # nibabel has set the entries beyond the third axis to 1
    header["scl_slope"], header["scl_inter"], header["descrip"] = 1, 0, description.encode()
    header["magic"] = header.single_magic
    header.set_data_offset(header.single_vox_offset)
    with atomic_file(path) as file:
        if not path.name.lower().endswith(".gz"):
            _write_parts(file, voxels, header)
            return
        with gzip.GzipFile(
            "", "wb", compresslevel=6, fileobj=file, mtime=0
        ) as archive:  # no time stamp: the same mask gives the same bytes
            _write_parts(cast(BinaryIO, archive), voxels, header)


def _write_parts(file: BinaryIO, voxels: NDArray[Any], header: Header) -> None:
    """Write header, the mark for no extensions, and the voxels in Fortran order, slab by slab to bound memory."""
    file.write(header.binaryblock)
    file.write(b"\0\0\0\0")
    for start in range(0, voxels.shape[2], 16):
        file.write(voxels[:, :, start : start + 16].tobytes(order="F"))
