"""NIfTI-1 and NIfTI-2 files, also as pairs of ``.img`` and ``.hdr``; masks get the header of their scan."""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from volseg.errors import DataError, GeometryError, OutputError
from volseg.geometry.grid import Grid
from volseg.io.atomic import atomic_file
from volseg.io.label_table import caret_extension
from volseg.io.remarks import remark
from volseg.io.stored import HINT, channels_first, check_shape, native, open_stream, stored_voxels

KIND = "NIfTI"
SUFFIXES = (".nii.gz", ".nii", ".img")
UNITS = {1: ("metre", 1000.0), 3: ("micron", 0.001)}  # xyzt_units -> name and mm; any other is taken as mm
LARGEST_METRES_MM = 100.0
"""Voxels that are larger when they are taken as metres were meant in mm."""
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
INVALID = 30  # of the levels in nibabel's reports: a field that decides about the grid was corrected
LABELS_CODE = 0
"""Of the extension with the names of labels, as in TotalSegmentator; nibabel cannot decode that of Caret (30)."""

Header = Any  # nibabel's Nifti1Header (that of NIfTI-2 is a subclass); its annotations are incomplete


def read_voxels(path: Path) -> tuple[NDArray[Any], Grid]:
    """Read an image or mask with 3 axes, or 4 with the channels last.

    Values keep their stored type unless the header scales them (``scl_slope``, ``scl_inter``); scaled values become
    float32, or float64 if float32 cannot represent the stored type. An uncompressed file is memory-mapped.

    Args:
        path: A ``.nii``, ``.nii.gz`` or ``.img`` file; the last has its header in a ``.hdr`` file beside it.

    Returns:
        ``(C, D, H, W)`` in the file's own axis order, and the grid.

    Raises:
        DataError: The file is missing, truncated, corrupt, not NIfTI, of other dimensions or without a usable affine.
    """
    header_path = _header_path(path)
    with open_stream(header_path, KIND, whole=True) as stream:
        header = _read_header(stream, header_path, reported=True)
        grid = _grid(header, path)
        _report(header, grid, path)
        if header_path == path:
            return _values(header, stream, path), grid
    with open_stream(path, KIND) as stream:
        return _values(header, stream, path), grid


def read_grid(path: Path) -> Grid:
    """Read the grid from the header alone.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    with open_stream(_header_path(path), KIND) as stream:
        return _grid(_read_header(stream, _header_path(path)), path)


def count_channels(path: Path) -> int:
    """Return the number of channels by the header alone.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    with open_stream(_header_path(path), KIND) as stream:
        shape = _shape(_read_header(stream, _header_path(path)))
    check_shape(shape, path)
    return int(shape[3]) if len(shape) > 3 else 1


def is_plain(path: Path) -> bool:
    """Return whether all programs read the grid alike: three axes, lengths in mm, directions by sform or qform.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    with open_stream(_header_path(path), KIND) as stream:
        header = _read_header(stream, _header_path(path))
    return len(header.get_data_shape()) == 3 and _unit(header)[0] == "mm" and _states_directions(header)


def files_of(path: Path) -> list[Path]:
    """Return the file, or the pair of ``.img`` and ``.hdr``.

    Raises:
        DataError: The header of a pair does not exist.
    """
    return sorted({path, _header_path(path)})


def _header_path(path: Path) -> Path:
    """Return the file of the header: that of the voxels, except for a pair of ``.img`` and ``.hdr``."""
    if path.suffix.lower() != ".img":
        return path
    candidates = [path.with_suffix(suffix) for suffix in (".hdr", ".HDR")]
    header = next((candidate for candidate in candidates if candidate.is_file()), None)
    if header is None:
        raise DataError("the header of the image does not exist", file=path, expected=candidates[0].name, hint=HINT)
    return header


def _read_header(stream: BufferedIOBase, path: Path, *, check: bool = True, reported: bool = False) -> Header:
    """Read the header of NIfTI-1 or NIfTI-2, without its extensions.

    Args:
        stream: The file, at its start.
        path: The file, for messages.
        check: Refuse fields without a meaning, and correct some others as nibabel does.
        reported: Report what was corrected.
    """
    start = stream.read(HEADER_BYTES)
    kinds: tuple[Any, ...] = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    for kind in kinds:
        if kind.may_contain_header(start):
            header = kind(start[: kind.sizeof_hdr], check=False)
            if check:
                header.check_fix(_Reports(path if reported else None))
            return header
    if nibabel.AnalyzeHeader.may_contain_header(start):
        raise DataError(
            "the file is Analyze 7.5, which does not state the directions: left and right could be swapped",
            file=path,
            found=f"magic {start[344:348]!r}",
            expected="NIfTI: n+1 or ni1",
            hint="convert it to NIfTI with a program that knows who wrote it, such as SPM, and check left and right",
        )
    raise ImageFileError(f"no NIfTI header in the first {len(start)} bytes")


class _Reports:
    """Takes the place of nibabel's logger, whose lines name no file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def log(self, level: int, message: str) -> None:
        if self._path is not None and level >= INVALID:
            remark("header-field", self._path, message)


def _values(header: Header, stream: BufferedIOBase, path: Path) -> NDArray[Any]:
    """Return the values (C, D, H, W), scaled as the header says."""
    dtype, offset = header.get_data_dtype(), _voxel_offset(header, path)
    if dtype.kind not in "iuf":
        found, expected = header.get_value_label("datatype"), "one real number of at most 64 bits per voxel"
        hint = "export grey values: one channel of a picture in colour, the magnitude of complex MRI"
        raise DataError("the voxels are not plain numbers", file=path, found=found, expected=expected, hint=hint)
    voxels = stored_voxels(stream, path, dtype, _shape(header), offset)
    slope, inter = _scaling(header, path)
    data = voxels if (slope, inter) == (1, 0) else _scaled(voxels, slope, inter)
    with np.errstate(over="ignore"):  # long doubles that float64 cannot hold become infinite, which check_image finds
        return channels_first(data.astype(native(data.dtype), copy=False))


def _voxel_offset(header: Header, path: Path) -> int:
    """Return the first byte of the voxels."""
    single = path.suffix.lower() != ".img"
    offset, smallest = float(header["vox_offset"]), header.single_vox_offset if single else header.pair_vox_offset
    if not (smallest <= offset < 2**63 and offset.is_integer()):
        raise DataError(
            "the file is corrupt: vox_offset in the header is invalid",
            file=path,
            found=offset,
            expected=f"a whole number of bytes from {smallest} on",
            hint=HINT,
        )
    return int(offset)


def _scaling(header: Header, path: Path) -> tuple[float, float]:
    """Return the factor of the values and what is added; a slope of 0 or NaN (nibabel's blank) stands for none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1, 0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        found, expected = f"scl_slope {slope}, scl_inter {inter}", "finite numbers"
        hint = "export the file again"
        raise DataError("the scaling in the header is invalid", file=path, found=found, expected=expected, hint=hint)
    return slope, inter


def _scaled(voxels: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """Scale the values in float64, slice by slice; see `read_voxels` for the type of the result."""
    wide = np.float32 if np.can_cast(voxels.dtype, np.float32) else np.float64
    data = np.empty(voxels.shape, wide, order="F")
    with np.errstate(over="ignore"):  # values that become infinite are found by check_image
        for source, target in zip(voxels.T, data.T, strict=True):  # contiguous in Fortran order
            target[...] = source.astype(np.float64) * slope + inter
    return data


def _grid(header: Header, path: Path) -> Grid:
    """Return the grid by sform (if its code is set), else by qform, else by voxel sizes; converted to mm."""
    shape = check_shape(_shape(header), path)
    affine = np.array(header.get_best_affine(), np.float64)
    name, mm = _unit(header)
    affine[:3] *= mm
    sizes_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if name == "metre" and sizes_mm.max() > LARGEST_METRES_MM:
        raise DataError(
            "the unit of lengths in the header cannot be right",
            file=path,
            found=f"xyzt_units: {name}, which gives voxels of {' x '.join(f'{mm:.6g}' for mm in sizes_mm)} mm",
            expected="xyzt_units: mm (2)",
            hint="if the voxel sizes in the header are in mm, write 2 into xyzt_units",
        )
    try:
        return Grid(shape, affine)
    except GeometryError as error:
        hint = "write the right sform or qform into the header"
        raise DataError("the header has no usable affine", file=path, found=error.in_short, hint=hint) from error


def _unit(header: Header) -> tuple[str, float]:
    """Return the unit of lengths, and its mm."""
    return UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))


def _states_directions(header: Header) -> bool:
    return bool(header["sform_code"] > 0 or header["qform_code"] > 0)


def _shape(header: Header) -> tuple[int, ...]:
    """Return the voxels along each axis; (X, Y, Z, C) of (X, Y, Z, 1, C), as ITK writes channels."""
    shape = header.get_data_shape()
    return (*shape[:3], *(length for length in shape[3:] if length != 1))


def _report(header: Header, grid: Grid, path: Path) -> None:
    """Report what was converted, or assumed."""
    name, _ = _unit(header)
    if name != "mm":
        sizes = " x ".join(f"{mm:.4g}" for mm in grid.spacing_mm)
        remark("unit", path, f"xyzt_units: {name}; voxels of {sizes} mm")
    if not _states_directions(header):
        taken = "taken as left, anterior, superior, as by nibabel; ITK takes left, posterior, superior"
        remark("no-directions", path, f"sform_code and qform_code are 0; {taken}")


def header_like(source: Path) -> Header:
    """Copy a scan's header for a mask on its grid; sform, qform, codes, voxel sizes and units are bitwise identical.

    Fields about the scan's values (scaling, display range, intent, description) are reset. Extensions are not copied
    because they may name the patient.

    Raises:
        DataError: The source cannot be read.
    """
    with open_stream(_header_path(source), KIND) as stream:
        header = _read_header(stream, source, check=False)  # the check would change fields, such as a qfac of 0
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


def write_voxels(
    path: Path, voxels: NDArray[Any], grid: Grid, source: Path | None, labels: Mapping[str, int] | None
) -> None:
    """Write ``(D, H, W)`` or ``(D, H, W, C)`` atomically, compressed if the name ends in ``.gz``.

    Args:
        path: The file to write.
        voxels: Labels or values, in the type to store.
        grid: Their grid.
        source: A NIfTI file on this grid whose header is copied, or ``None``.
        labels: Name -> value, stored with their colours as an extension of the header; ``None`` for values that are
            not labels.

    Raises:
        OutputError: The file cannot be written.
        DataError: The source cannot be read.
    """
    if path.suffix.lower() == ".img":
        raise OutputError("masks are written as one file", file=path, expected=".nii.gz or .nii")
    header = header_of(grid) if source is None else header_like(source)
    header.set_data_dtype(voxels.dtype)
    pixdim = header["pixdim"].copy()
    header.set_data_shape(voxels.shape)
    header["pixdim"] = pixdim  # nibabel has set the entries beyond the third axis to 1
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["descrip"] = b"volseg map" if labels is None else b"volseg mask"
    header["magic"] = header.single_magic
    header.extensions.clear()
    if labels:
        header.extensions.append(nibabel.nifti1.Nifti1Extension(LABELS_CODE, caret_extension(labels)))
    header.set_data_offset(header.single_vox_offset + header.extensions.get_sizeondisk())
    with atomic_file(path) as file:
        if not path.name.lower().endswith(".gz"):
            _write_parts(file, voxels, header)
            return
        with gzip.GzipFile(
            "", "wb", compresslevel=1 if labels is None else 6, fileobj=file, mtime=0
        ) as archive:  # no time stamp: the same mask gives the same bytes
            _write_parts(archive, voxels, header)


def _write_parts(file: BinaryIO | gzip.GzipFile, voxels: NDArray[Any], header: Header) -> None:
    """Write header, extensions, and the voxels in Fortran order, slab by slab to bound memory."""
    file.write(header.binaryblock)
    file.write(b"\1\0\0\0" if len(header.extensions) else b"\0\0\0\0")
    header.extensions.write_to(file, byteswap=False)
    for volume in np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels[None]:
        for start in range(0, volume.shape[2], 16):
            file.write(volume[:, :, start : start + 16].tobytes(order="F"))
