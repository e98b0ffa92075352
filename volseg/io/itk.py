"""NRRD and MetaImage files through SimpleITK, which knows the axes of the patient as LPS+ millimetres."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.config.sizes import format_size
from volseg.errors import DataError, GeometryError, OutputError
from volseg.geometry.grid import Grid
from volseg.io.atomic import atomic_file
from volseg.io.itk_header import HEADER_END, UNITS_MM, check_space, report, text_of, unit_of, with_unit
from volseg.io.label_table import slicer_fields
from volseg.io.paths import is_file
from volseg.io.stored import DEFLATE_RATIO, HINT

if TYPE_CHECKING:
    import SimpleITK

SUFFIXES = (".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
HEADER_BYTES = 1 << 20  # a .seg.nrrd with a hundred segments has 80 kB
LONGEST_FIELD = 500  # the library writes longer ones beyond its buffers (SimpleITK 2.5)
MOST_AXES = 10  # of MetaImage; with more, memory that is not allocated is written
DATA_FILE = re.compile(r"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*(.*?)[ \t]*\r?$", re.MULTILINE | re.IGNORECASE)
SEGMENTATION = ".seg.nrrd"
SEGMENT_NAME = re.compile(r"Segment(\d+)_Name")
SPACE = re.compile(rb"^(space(?: directions| origin)?): *([^\r\n]*)", re.MULTILINE)
AXES = re.compile(r"^[ \t]*NDims[ \t]*[=:]?[ \t]*(.*?)[ \t]*\r?$", re.MULTILINE | re.IGNORECASE)
COMPRESSED = re.compile(r"^(?:CompressedData[ \t]*=[ \t]*T|encoding:[ \t]*(?!raw|[ \t]))", re.MULTILINE | re.IGNORECASE)


def read_voxels(path: Path) -> tuple[NDArray[Any], Grid]:
    """Read an image or mask with 3 axes, or 4 with the channels last; several values a voxel are channels.

    Args:
        path: A ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file.

    Returns:
        ``(C, D, H, W)`` in the file's own axis order and stored type, and the grid.

    Raises:
        DataError: The file is missing, truncated, corrupt, of another kind or of other dimensions.
    """
    import SimpleITK

    reader = _header(path)
    grid = _grid(reader, path)
    _check_size(reader, path)
    report(_header_text(path), path)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise _broken(path, error) from error
    data = SimpleITK.GetArrayFromImage(image).T
    if data.dtype.kind not in "iuf":
        raise DataError("the voxels are not plain numbers", file=path, found=data.dtype, expected="real numbers")
    if data.ndim == 3:  # (X, Y, Z)
        return data[None], grid
    return (np.moveaxis(data, -1, 0) if image.GetDimension() == 4 else data), grid  # (X, Y, Z, C) or (C, X, Y, Z)


def read_grid(path: Path) -> Grid:
    """Read the grid from the header alone.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    return _grid(_header(path), path)


def count_channels(path: Path) -> int:
    """Return the number of channels by the header alone.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    reader = _header(path)
    _grid(reader, path)
    return int(reader.GetSize()[3]) if reader.GetDimension() == 4 else int(reader.GetNumberOfComponents())


def segment_values(path: Path) -> dict[str, int]:
    """Return name -> label value of the segments that a ``.seg.nrrd`` file names; other files name none.

    Raises:
        DataError: As ``read_voxels``, for errors in the header.
    """
    if not path.name.lower().endswith(SEGMENTATION):
        return {}
    reader, names = _header(path), dict[str, int]()
    keys = set(reader.GetMetaDataKeys())
    for key in keys:
        match = SEGMENT_NAME.fullmatch(key)
        value = f"Segment{match[1]}_LabelValue" if match else ""
        if value in keys and reader.GetMetaData(value).strip().isdecimal():
            names[reader.GetMetaData(key)] = int(reader.GetMetaData(value)[:10])
    return names


def files_of(path: Path) -> list[Path]:
    """Return the file, and that of the voxels if it is another one.

    Raises:
        DataError: The file of the voxels is missing or lies elsewhere.
    """
    try:
        return sorted({path, _data_path(_header_text(path), path)})
    except OSError as error:
        raise _broken(path, error) from error


def write_voxels(
    path: Path, voxels: NDArray[Any], grid: Grid, source: Path | None, labels: Mapping[str, int] | None
) -> None:
    """Write ``(D, H, W)`` atomically and compressed, header and voxels in one file.

    Args:
        path: The ``.nrrd`` or ``.mha`` file to write.
        voxels: Labels or values, in the type to store.
        grid: Their grid.
        source: A file of these formats on this grid, whose affine is copied, or ``None``.
        labels: Name -> value, stored with their colours in a ``.seg.nrrd`` file as 3D Slicer does; ``None`` for values
            that are not labels.

    Raises:
        OutputError: The file cannot be written, its header would lie in a file of its own, or the grid has shear.
        DataError: The source cannot be read.
    """
    import SimpleITK

    if path.suffix.lower() in (".nhdr", ".mhd"):
        raise OutputError("masks are written as one file", file=path, expected=".nrrd or .mha")
    spacing, direction, origin = _affine_parts(path, grid) if source is None else _parts_of(source)
    unit = "mm" if source is None else unit_of(_header_text(source), source)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    image.SetOrigin(origin)
    image.SetMetaData("volseg", "map" if labels is None else "mask")
    if labels and path.name.lower().endswith(SEGMENTATION):
        for key, text in slicer_fields(labels, voxels).items():
            image.SetMetaData(key, text)
    content = _content(image, path)
    if source is not None:
        content = with_unit(_with_space_of(source, content), unit)
    with atomic_file(path) as file:
        file.write(content)


def _content(image: SimpleITK.Image, path: Path) -> bytes:
    """Return the compressed file of an image; SimpleITK writes to paths only."""
    import SimpleITK

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, f"mask{path.suffix.lower()}")
        try:
            SimpleITK.WriteImage(image, str(whole), useCompression=True)
            return whole.read_bytes()
        except (OSError, RuntimeError) as error:
            raise OutputError("the file cannot be written", file=path, found=_reason(error)) from error


def check_grid(path: Path, grid: Grid) -> None:
    """Check that these formats can hold a grid.

    Raises:
        OutputError: It has shear.
    """
    direction = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-5):
        raise OutputError("this format stores no shear", file=path, hint="write .nii.gz")


def _affine_parts(path: Path, grid: Grid) -> tuple[list[float], list[float], list[float]]:
    """Return spacing, direction and origin of a grid in ITK's axes (LPS+)."""
    check_grid(path, grid)
    spacing = np.asarray(grid.spacing_mm)
    direction = LPS_TO_RAS @ grid.affine[:3, :3] / spacing
    return spacing.tolist(), direction.ravel().tolist(), (LPS_TO_RAS @ grid.affine[:3, 3]).tolist()


def _parts_of(source: Path) -> tuple[list[float], list[float], list[float]]:
    """Return spacing, direction and origin of a file's first three axes, bitwise as SimpleITK reads them."""
    reader = _header(source)
    axes = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3]
    return list(reader.GetSpacing()[:3]), direction.ravel().tolist(), list(reader.GetOrigin()[:3])


def _with_space_of(source: Path, content: bytes) -> bytes:
    """Return an NRRD file with the text of the source's affine.

    ITK divides the directions by the spacing when it reads them and multiplies them when it writes, which changes the
    last digit. Other files are returned as they are.
    """
    theirs = dict(SPACE.findall(_header_text(source).encode("latin-1")))
    directions = re.findall(rb"\([^)]*\)", theirs.get(b"space directions", b""))
    end = HEADER_END.search(content)
    if not content.startswith(b"NRRD") or end is None or len(directions) != 3 or len(theirs) != 3:
        return content
    theirs[b"space directions"] = b" ".join(directions)
    header = SPACE.sub(lambda field: field[1] + b": " + theirs[field[1]], content[: end.end()])
    return header + content[end.end() :]


def _header(path: Path) -> SimpleITK.ImageFileReader:
    """Open a file and read its header."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(
        "NrrdImageIO" if "nrrd" in path.suffix.lower() or path.suffix.lower() == ".nhdr" else "MetaImageIO"
    )
    reader.SetFileName(str(path))
    try:
        header = _header_text(path)
        _check_header(header, path)
        _data_path(header, path)
        reader.ReadImageInformation()
    except PermissionError as error:
        raise DataError("reading the file is not permitted", file=path, hint="give read permission") from error
    except (OSError, RuntimeError, MemoryError) as error:
        raise _broken(path, error) from error
    return reader


def _grid(reader: SimpleITK.ImageFileReader, path: Path) -> Grid:
    """Return the grid in RAS+ mm; units that ITK ignores are converted."""
    shape = reader.GetSize()
    axes, channels = len(shape), reader.GetNumberOfComponents()
    if axes not in (3, 4) or min(shape) < 1 or (axes == 4 and channels > 1):
        expected = "(X, Y, Z), or (X, Y, Z, channels), each at least 1"
        hint = "save one volume, with its channels as the fourth axis"
        found = (*shape, channels)
        raise DataError(f"this is not a volume: {axes}D", file=path, found=found, expected=expected, hint=hint)
    direction = np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3]
    if min(reader.GetSpacing()) < 0:
        hint = "write positive sizes, and the direction into the matrix of directions"
        raise DataError(
            "the header states voxel sizes that are negative", file=path, found=reader.GetSpacing(), hint=hint
        )
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ direction * np.array(reader.GetSpacing())[:3]
    affine[:3, 3] = LPS_TO_RAS @ np.array(reader.GetOrigin())[:3]
    affine[:3] *= UNITS_MM[unit_of(_header_text(path), path)]
    try:
        return Grid((shape[0], shape[1], shape[2]), affine)
    except GeometryError as error:
        hint = "write the right spacing and direction into the header"
        raise DataError("the header has no usable affine", file=path, found=error.in_short, hint=hint) from error


def _check_size(reader: SimpleITK.ImageFileReader, path: Path) -> None:
    """Compare the size that the header claims with that of the file, before memory is taken."""
    import SimpleITK

    one = SimpleITK.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    voxel_bytes = one.GetSizeOfPixelComponent()
    claimed = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * voxel_bytes
    header = _header_text(path)
    size = _data_path(header, path).stat().st_size
    end = HEADER_END.search(header.encode("latin-1"))
    if end is not None and _data_path(header, path) == path:
        size -= end.end()
    compressed = COMPRESSED.search(header) is not None
    if claimed > size * (DEFLATE_RATIO if compressed else 1):
        found = f"{format_size(size)}{' compressed' if compressed else ''}"
        problem, expected = "the file is truncated or corrupt: it is shorter than its header says", format_size(claimed)
        raise DataError(problem, file=path, found=f"{found} of voxels", expected=expected, hint=HINT)


def _header_text(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    end = HEADER_END.search(start)
    return start[: end.end() if end else None].decode("latin-1")


def _check_header(header: str, path: Path) -> None:
    """Refuse a header that the library would not survive, without a message, or whose space it would ignore."""
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        longest = max((len(line) for line in header.splitlines() if ":=" not in line), default=0)
        if longest > LONGEST_FIELD:
            expected = f"at most {LONGEST_FIELD} characters"
            raise DataError("a line of the header is too long", file=path, found=longest, expected=expected, hint=HINT)
        check_space(header, path)
        return
    for axes in AXES.findall(header):
        if not (axes.isdecimal() and 1 <= int(axes[:9]) <= MOST_AXES):
            raise DataError("the header has no valid NDims", file=path, found=axes[:80], expected="3 or 4", hint=HINT)


def _data_path(header: str, path: Path) -> Path:
    """Return the file of the voxels: this one, or the one beside it that the header names."""
    name = text_of(next(iter(DATA_FILE.findall(header)), "LOCAL"))
    if name.upper() in ("LOCAL", ""):  # SimpleITK refuses a name that is empty
        return path
    if name.upper().startswith("LIST") or "%" in name or Path(name).name != name:
        raise DataError(
            "the voxels of the file lie elsewhere",
            file=path,
            found=name,
            expected="one file in the same folder",
            hint="convert it to .nii.gz, or to a .nrrd or .mha that holds its voxels",
        )
    if not is_file(path.with_name(name)):
        raise DataError("the file of the voxels does not exist", file=path, found=name, hint=HINT)
    return path.with_name(name)


def _broken(path: Path, error: Exception) -> DataError:
    return DataError("the file is truncated, corrupt or of another kind", file=path, found=_reason(error), hint=HINT)


def _reason(error: Exception) -> str:
    """Return the last line of an error of SimpleITK, which begins with its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
