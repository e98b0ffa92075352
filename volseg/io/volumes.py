"""Reading scans and masks, and writing masks and maps, in every known file format; errors name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, GeometryError, OutputError, missing_hint
from volseg.geometry.grid import Grid
from volseg.geometry.ops import in_order_of
from volseg.geometry.resample import resample_onto
from volseg.geometry.volume import LARGEST_LABEL, Mask, Volume
from volseg.io import dicom, dicom_files, dicom_rtstruct, dicom_seg, itk, mgh, nifti
from volseg.io.paths import exists, is_file, is_folder, is_link

__all__ = [
    "GRID_MM",
    "as_mask",
    "check_grid",
    "check_image",
    "check_libraries",
    "count_channels",
    "files_of",
    "has_mask_suffix",
    "has_volume_suffix",
    "image_errors",
    "is_scan",
    "read_channels",
    "read_grid",
    "read_mask",
    "read_volume",
    "stack_channels",
    "volume_stem",
    "write_map",
    "write_mask",
]


class Readable(Protocol):
    """Functions of a module that reads a format."""

    def read_voxels(self, path: Path) -> tuple[NDArray[Any], Grid]:
        """Read ``(C, D, H, W)`` in the file's own axis order and stored type, and the grid."""

    def read_grid(self, path: Path) -> Grid:
        """Read the grid from the header alone."""

    def count_channels(self, path: Path) -> int:
        """Return the number of channels by the header alone."""

    def files_of(self, path: Path) -> list[Path]:
        """Return the files that hold header and voxels: often the path alone."""


class FileFormat(Readable, Protocol):
    """Functions of a module that implements a file format."""

    @property
    def SUFFIXES(self) -> tuple[str, ...]:
        """Endings of its file names, lower case."""

    def write_voxels(
        self, path: Path, voxels: NDArray[Any], grid: Grid, source: Path | None, labels: Mapping[str, int] | None
    ) -> None:
        """Write ``(D, H, W)``; a source of the same format gives the header. Labels (name -> value) go along."""


FORMATS: tuple[FileFormat, ...] = (nifti, itk, mgh)
"""The file formats. A new one is a module like `volseg.io.nifti` and an entry here. DICOM series, which are folders and
files of any name, are recognised by their content."""
DICOM_MASKS = (dicom_seg, dicom_rtstruct)
"""Formats of masks only, which refer to the series that was segmented."""
MASK_FORMATS: tuple[FileFormat, ...] = (*FORMATS, *DICOM_MASKS)
MASK_TYPES = (np.uint8, np.uint16, np.int16, np.int32)
GRID_MM = 0.01
"""Largest distance of corresponding corners of two grids that count as the same, mm."""
LONGEST_PATH = 300  # in messages
SLAB_VOXELS = 1 << 22
LARGEST_VALUE = float(np.finfo(np.float32).max) / 4  # differences of two values are float32 numbers, too
INTEGRAL = 1e-3  # largest distance from an integer of a label stored as a float (the header's scaling rounds)


def _suffix(path: Path, formats: tuple[FileFormat, ...] = MASK_FORMATS) -> str | None:
    """Return the suffix of a format; ``.nii.gz`` counts as one."""
    known = (suffix for one in formats for suffix in one.SUFFIXES)
    return next((suffix for suffix in known if path.name.lower().endswith(suffix)), None)


def _format(path: Path) -> FileFormat | None:
    """Return the format of a file by its name; ``None`` for any other name."""
    return next((one for one in MASK_FORMATS if _suffix(path) in one.SUFFIXES), None)


def _suffixes(formats: tuple[FileFormat, ...] = FORMATS) -> str:
    return " or ".join(suffix for one in formats for suffix in one.SUFFIXES)


def has_volume_suffix(path: str | Path) -> bool:
    """Return whether a file name is that of a scan or mask (``.nii``, ``.nii.gz``, ``.nrrd`` ...) and not hidden."""
    path = Path(path)
    return _suffix(path, FORMATS) is not None and not path.name.startswith(".")


def has_mask_suffix(path: str | Path) -> bool:
    """Return whether a file name is that of a mask, which may also be ``.seg.dcm`` or ``.rtstruct.dcm``; not hidden."""
    path = Path(path)
    return _suffix(path) is not None and not path.name.startswith(".")


def check_libraries(path: str | Path) -> None:
    """Check that the libraries are installed which write a mask with this name.

    Raises:
        MissingExtraError: They are not.
    """
    for one in DICOM_MASKS:
        if _suffix(Path(path)) in one.SUFFIXES:
            one.libraries()


def check_grid(path: str | Path, grid: Grid) -> None:
    """Check that the format of a file name can hold a grid.

    Raises:
        OutputError: It cannot: NRRD and MetaImage store no shear.
    """
    if _format(Path(path)) is itk:
        itk.check_grid(Path(path), grid)


def is_scan(path: Path) -> bool:
    """Return whether a path is named as a scan or mask, or is a folder or zip of a DICOM series; and is not hidden."""
    is_container = is_folder(path) or path.suffix.lower() == dicom_files.ZIP
    return has_volume_suffix(path) or (is_container and not path.name.startswith(".") and dicom.is_series(path))


def volume_stem(path: str | Path) -> str:
    """Return the file name without folder and suffix (``.nii.gz`` counts as one); the whole name of a folder."""
    path = Path(path)
    suffix = _suffix(path)
    if suffix:
        return path.name[: -len(suffix)]
    return Path(os.path.abspath(path)).name if is_folder(path) else path.stem  # noqa: PTH100 (resolve follows links)


def read_volume(path: str | Path) -> Volume:
    """Read a scan.

    Args:
        path: A NIfTI file with axes (X, Y, Z), or (X, Y, Z, C) with the channels last; a file of another of the
            ``FORMATS``; or a DICOM series: its folder, a zip of it, or one of its files.

    Returns:
        ``(C, D, H, W)`` in the file's own axis order and stored type (float where the header scales the values),
        and the grid in RAS+ mm: by the sform if its code is set, else by the qform, else by the voxel sizes.

    Raises:
        DataError: The file is missing, truncated, corrupt, of another format, not 3D or 4D, or has no usable affine.
    """
    path = Path(path)
    return Volume(*_readable(path).read_voxels(path))


def read_grid(path: str | Path) -> Grid:
    """Read the grid of a scan or mask from its header alone.

    Raises:
        DataError: As ``read_volume``.
    """
    path = Path(path)
    return _readable(path).read_grid(path)


def count_channels(path: str | Path) -> int:
    """Return the number of channels of a scan by its header alone.

    Raises:
        DataError: As ``read_volume``.
    """
    path = Path(path)
    return _readable(path).count_channels(path)


def files_of(path: str | Path) -> list[Path]:
    """Return the files that hold a scan or mask: header and voxels, or the slices of a series, may have files each.

    Raises:
        DataError: A file is missing or no regular file, or the format is not read.
    """
    path = Path(path)
    files = _readable(path).files_of(path)
    for file in files:
        check_path(file)
    return files


def _readable(path: Path) -> Readable:
    """Return the format of an existing scan; raise a DataError for any other path."""
    check_path(path)
    if is_file(path) and (file_format := _format(path)) is not None:
        return file_format
    if dicom.is_series(path):
        return dicom
    if is_folder(path) or path.suffix.lower() == dicom_files.ZIP:
        raise dicom.without_series(path)
    found, expected = _suffix(path) or path.suffix or "no suffix", f"{_suffixes()}, or {dicom.EXPECTED}"
    hint = "convert to NIfTI"
    if path.suffix.lower() == ".hdr":
        hint = f"give the file of the voxels: {path.with_suffix('.img').name}"
    elif dicom_files.is_archive(path.name):
        hint = "unpack it, and give the file or folder of the scan"
    raise DataError("this format is not read", file=path, found=found, expected=expected, hint=hint)


def check_path(path: Path) -> None:
    """Check that a path leads to a regular file or a folder, without opening it.

    Raises:
        DataError: It leads to nothing, or to something that may never end, such as a pipe.
    """
    if is_file(path) or is_folder(path):
        return
    if exists(path):
        raise DataError("this is not a regular file", file=path, hint="remove it, or give the file itself")
    if is_link(path):
        hint = "restore the file it names"
        raise DataError("the link leads to nothing", file=path, found=path.readlink(), hint=hint, kind="dangling-link")
    raise DataError(
        "the file does not exist", file=str(path)[:LONGEST_PATH], hint=missing_hint(path), kind="missing-file"
    )


def read_channels(paths: Sequence[str | Path], *, resample: bool = False, tolerance_mm: float = GRID_MM) -> Volume:
    """Read the channels of one case, one or more per file, and stack them.

    Args:
        paths: Files in the order of the channels, all on the same grid.
        resample: Resample files on other grids onto that of the first, linearly.
        tolerance_mm: Largest distance of corresponding corners of grids that count as the same.

    Returns:
        ``(C, D, H, W)`` on the grid of the first file; files with the same voxels in another order are reordered.

    Raises:
        DataError: A file cannot be read, or two files lie on different grids.
    """
    return stack_channels([read_volume(path) for path in paths], paths, resample=resample, tolerance_mm=tolerance_mm)


def stack_channels(
    volumes: Sequence[Volume], paths: Sequence[str | Path], *, resample: bool = False, tolerance_mm: float = GRID_MM
) -> Volume:
    """Stack the volumes of some files; arguments, result and errors as in :func:`read_channels`."""
    if not volumes:
        raise DataError("a case without image files")
    first = volumes[0].grid
    volumes = [Volume(*in_order_of(volume.data, volume.grid, first, tolerance_mm)) for volume in volumes]
    for number, (path, volume) in enumerate(zip(paths, volumes, strict=True)):
        if volume.grid.same_as(first, tolerance_mm):
            continue
        if not resample:
            raise DataError(
                "the channels of a case lie on different grids",
                file=path,
                found=volume.grid.describe(),
                expected=f"{first.describe()} ({paths[0]})",
                hint="volseg convert and volseg predict resample them to the first with --resample-channels",
                kind="channel-grid",
            )
        volumes[number] = Volume(np.stack([resample_onto(one, volume.grid, first) for one in volume.data]), first)
    return volumes[0] if len(volumes) == 1 else Volume(np.concatenate([v.data for v in volumes]), first)


def read_mask(path: str | Path) -> Mask:
    """Read labels; floats are accepted if all are whole numbers.

    Raises:
        DataError: As ``read_volume``; or there are several channels, or values that are not integers or beyond
            ``LARGEST_LABEL``.
    """
    return as_mask(read_volume(path), path)


def as_mask(volume: Volume, path: str | Path) -> Mask:
    """Take the volume of a file as labels; errors as in :func:`read_mask`."""
    if len(volume.data) != 1:
        found, hint = f"{len(volume.data)} channels", "give a label map: one whole number per voxel"
        raise DataError("a mask has one channel", file=path, found=found, hint=hint, kind="dimensions")
    values = volume.data[0]
    low, high = (values.min(), values.max()) if values.dtype.itemsize > 2 else (0, 0)
    if max(-float(low), float(high)) > LARGEST_LABEL:
        found, expected = f"{low:.15g} to {high:.15g}", f"at most {LARGEST_LABEL}"
        hint = "renumber the labels"
        problem = "a mask holds a value that is too large"
        raise DataError(problem, file=path, found=found, expected=expected, hint=hint, kind="label-too-large")
    return Mask(_whole_numbers(values, path), volume.grid)


def _whole_numbers(values: NDArray[Any], path: str | Path) -> NDArray[Any]:
    if values.dtype.kind in "iu":
        return values
    with np.errstate(invalid="ignore"):  # infinities, and NaNs of the signalling kind
        rounded = np.rint(values)
        wrong = ~(np.abs(values - rounded) <= INTEGRAL)
    if wrong.any():
        others = np.count_nonzero(wrong) - 1
        found = f"{values[wrong][0]:g}" + (f" and {others} more" if others else "")
        hint = "export labels without interpolation, as an integer type"
        problem = "a mask holds values that are not integers"
        raise DataError(problem, file=path, found=found, hint=hint, kind="label-not-integer")
    return np.asarray(rounded.astype(np.int64))


def check_image(volume: Volume, paths: Sequence[str | Path]) -> None:
    """Check that the values of an image are finite in float32 and not constant.

    Args:
        volume: The image.
        paths: Its files, for the message: one per channel, or one.

    Raises:
        DataError: A channel holds NaN, infinite values, values too large for float32, or the same value everywhere.
    """
    for error in image_errors(volume, paths):
        raise error


def image_errors(volume: Volume, paths: Sequence[str | Path]) -> Iterator[DataError]:
    """Yield the error of every channel that :func:`check_image` refuses."""
    for number, channel in enumerate(volume.data):
        which = f" (channel {number})" if len(volume.data) > 1 else ""
        path = paths[number] if len(paths) == len(volume.data) else paths[0]
        parts = np.array_split(channel, min(len(channel), 1 + channel.size // SLAB_VOXELS))
        low, high = float(np.min([p.min() for p in parts])), float(np.max([p.max() for p in parts]))
        if not (np.isfinite(low) and np.isfinite(high)):
            found, hint = "NaN" if np.isnan(low) else f"{low} to {high}", "replace them by the value of the background"
            problem = f"the image holds values that are not finite{which}"
            yield DataError(problem, file=path, found=found, hint=hint, kind="not-finite")
        elif max(-low, high) > LARGEST_VALUE:
            yield DataError(
                f"the image holds values that are too large{which}",
                file=path,
                found=f"{low:g} to {high:g}",
                expected=f"at most {LARGEST_VALUE:.2g}, for float32",
                hint="check how the image was exported",
                kind="too-large-value",
            )
        elif low == high:
            hint = "check how the image was exported, or remove the case"
            problem = f"the image is empty: all voxels have the same value{which}"
            yield DataError(problem, file=path, found=f"{low:g}", hint=hint, kind="constant")


def write_mask(
    path: str | Path, mask: Mask, source: str | Path | None = None, labels: Mapping[str, int] | None = None
) -> None:
    """Write labels atomically, in the smallest integer type of the format that holds them.

    With a source of the same format, affine and shape are bitwise identical to the source's; NIfTI also keeps sform,
    qform, their codes, the voxel sizes and the units. Otherwise NIfTI and MGH round each entry of the affine to float32
    (by at most 6e-8 of its size), NRRD and MetaImage to the last digit of float64.

    Args:
        path: The file to write, in the format of its ending; its folder is created if needed.
        mask: The labels, on the source's grid.
        source: The scan whose header is copied; for masks in DICOM the series, as a folder, a zip or a file of it.
        labels: Class name -> value; NIfTI, ``.seg.nrrd`` and DICOM store names and colours.

    Raises:
        OutputError: The file cannot be written, has another suffix, or a label does not fit in 32 bits.
        GeometryError: The mask is not on the source's grid.
        DataError: The source cannot be read.
    """
    path = Path(path)
    if source is not None and _format(path) not in DICOM_MASKS:  # which compare the grids themselves
        grid = read_grid(source)
        if not grid.same_as(mask.grid):
            found, expected = mask.grid.describe(), grid.describe()
            raise GeometryError("the mask is not on the grid of its scan", file=source, found=found, expected=expected)
    _write(path, _smallest(mask.labels, path), mask.grid, source, labels or {})


def write_map(path: str | Path, values: NDArray[Any], grid: Grid) -> None:
    """Write a value per voxel, ``(D, H, W)``, in its own type, atomically; NIfTI also several, ``(D, H, W, C)``.

    Raises:
        OutputError: The file cannot be written, or has another suffix.
    """
    _write(Path(path), values, grid, None, None)


def _write(
    path: Path, voxels: NDArray[Any], grid: Grid, source: str | Path | None, labels: Mapping[str, int] | None
) -> None:
    file_format = _format(path)
    if file_format is None:
        raise OutputError("this format is not written", file=path, expected=_suffixes(MASK_FORMATS))
    useful = source is not None and (file_format in DICOM_MASKS or _format(Path(source)) is file_format)
    file_format.write_voxels(path, voxels, grid, Path(source) if source and useful else None, labels)


def _smallest(labels: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return the labels in the first of the mask types that holds them all."""
    low, high = int(labels.min()), int(labels.max())
    for dtype in MASK_TYPES:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return labels.astype(dtype, copy=False)
    raise OutputError("a label does not fit in 32 bits", file=path, found=(low, high))
