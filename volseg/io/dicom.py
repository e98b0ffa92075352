"""DICOM series of CT, MR or PET as volumes: a folder or zip of one series, or a file of it; pydicom reads the headers.

A file stands for the whole series that it belongs to, among the files of its folder, which chooses one of several.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, counted
from volseg.geometry.grid import Grid
from volseg.io.dicom_files import (
    ZIP,
    Member,
    holds_dicom,
    is_archive,
    is_damaged_copy,
    is_dicom,
    is_index,
    open_members,
    shows_dicom,
)
from volseg.io.dicom_frames import Frame, read_frames
from volseg.io.dicom_geometry import arrange, doubtful_distance
from volseg.io.dicom_headers import Header, read_header
from volseg.io.dicom_pixels import read_stack
from volseg.io.paths import is_file, is_folder
from volseg.io.remarks import remark

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

EXPECTED = "a DICOM series (a folder, a zip or one of its files)"
LISTED = 20


@dataclass(frozen=True)
class Series:
    """The slices of a series, checked.

    Attributes:
        frames: The slices, in order.
        grid: Their grid.
        skipped: DICOM objects beside them that are not slices.
        unknown: Archives beside them, and files that look like no DICOM file and have no usual ending.
    """

    frames: Sequence[Frame]
    grid: Grid
    skipped: Sequence[str]
    unknown: Sequence[str]


def is_series(path: Path) -> bool:
    """Return whether a path is a folder or zip that holds DICOM files, or a DICOM file.

    A zip that cannot be read counts, so that reading it names what is wrong.
    """
    if is_folder(path):
        return holds_dicom(path)
    if not is_file(path):
        return False
    return holds_dicom(path) if path.suffix.lower() == ZIP else shows_dicom(Member(path))


def is_series_folder(path: Path) -> bool:
    """Return whether a folder itself holds DICOM files, not only its sub-folders."""
    return is_folder(path) and holds_dicom(path, recursive=False)


def read_voxels(path: Path) -> tuple[NDArray[Any], Grid]:
    """Read a series.

    Args:
        path: A folder (with its sub-folders) or zip that holds one series, or a file of a series.

    Returns:
        ``(1, columns, rows, slices)``, int16 where that is exact and float32 otherwise, and the grid. Slices are
        sorted by position along their normal.

    Raises:
        DataError: There is no series, or several; a file is damaged, lacks a tag or is not read; or the slices are no
            even, upright stack of one size.
    """
    with _series(path) as series:
        for names, text in ((series.skipped, "not slices of a volume"), (series.unknown, "not DICOM")):
            if names:
                logger.info("%s: skipped, %s: %s", path, text, _listed(names))
        doubt = doubtful_distance(series.frames, series.grid.spacing_mm[2])
        if doubt is not None:
            remark("slice-gap", path, doubt)
        stack = read_stack(series.frames, path)  # (slices, rows, columns)
    return np.transpose(stack, (2, 1, 0))[None], series.grid


def read_grid(path: Path) -> Grid:
    """Read the grid from the headers alone.

    Raises:
        DataError: As ``read_voxels``, for errors in the headers.
    """
    with _series(path) as series:
        return series.grid


def count_channels(path: Path) -> int:
    """Return 1: the volumes of several phases or echoes are several scans, whose channels are several folders."""
    return 1


def files_of(path: Path) -> list[Path]:
    """Return the files that decide about a scan: the zip, or every DICOM file of the folder, sorted by name.

    Raises:
        DataError: The folder cannot be read.
    """
    if is_file(path) and path.suffix.lower() == ZIP:
        return [path]
    folder = path if is_folder(path) else path.parent
    with open_members(folder, recursive=is_folder(path)) as members:
        files = [member.path for member in members if is_dicom(member)]
    return files if is_folder(path) else [path, *files]


def series_files(path: str | Path) -> list[Path]:
    """Return the files of a series in the order of its slices; a multi-frame file counts once.

    Raises:
        DataError: As ``read_voxels``, for errors in the headers; or the series is in a zip.
    """
    path = Path(path)
    if path.suffix.lower() == ZIP and is_file(path):
        raise DataError("the files of the series are in a zip", file=path, hint="unpack it and give the folder")
    with _series(path) as series:
        return list(dict.fromkeys(frame.header.member.path for frame in series.frames))


def series_headers(path: str | Path) -> list[Dataset]:
    """Return the headers of a series' files without pixels, in the order of its slices, as pydicom reads them.

    Raises:
        DataError: As ``read_voxels``, for errors in the headers.
    """
    from pydicom import dcmread

    headers: list[Dataset] = []
    with _series(Path(path)) as series:
        members = {frame.header.member.name: frame.header.member for frame in series.frames}
        for member in members.values():
            with member.open() as stream:
                headers.append(dcmread(stream, stop_before_pixels=True, force=True))
    return headers


@contextmanager
def _series(path: Path) -> Iterator[Series]:
    """Read the headers of a series and arrange its slices; the files can be opened within the block."""
    one_file = is_file(path) and path.suffix.lower() != ZIP
    with open_members(path.parent if one_file else path, recursive=not one_file) as members:
        headers, unknown = _headers(members)
        slices: dict[str, list[Header]] = {}
        for header in headers:
            if header.is_slice:
                slices.setdefault(header.series, []).append(header)
        if one_file:
            slices = _of_file(path, slices)
        skipped = [f"{header.member.short_name} ({_kind(header)})" for header in headers if not header.is_slice]
        if not slices:
            raise _no_series(path, skipped, unknown)
        if len(slices) > 1:
            raise _several_series(path, slices)
        frames = [frame for header in next(iter(slices.values())) for frame in read_frames(header)]
        frames, grid = arrange(frames, path)
        yield Series(frames, grid, skipped, unknown)


def _headers(members: Sequence[Member]) -> tuple[list[Header], list[str]]:
    """Return the headers of the DICOM files, and the names of archives and of files that have no usual ending."""
    headers, unknown = [], []
    for member in members:
        if is_dicom(member) or is_damaged_copy(member):
            headers.append(read_header(member))
        elif is_archive(member.short_name) or not Path(member.short_name).suffix[1:].isalpha():
            unknown.append(member.short_name)
    return headers, unknown


def _of_file(path: Path, slices: dict[str, list[Header]]) -> dict[str, list[Header]]:
    """Return the series that a file belongs to."""
    return {
        uid: headers
        for uid, headers in slices.items()
        if any(header.member.path.name == path.name for header in headers)
    }


def _kind(header: Header) -> str:
    if is_index(header.member):
        return "table of contents"
    return "localizer" if "LOCALIZER" in header.text("ImageType").upper() else header.kind


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def without_series(path: Path) -> DataError:
    """Return the error about a folder or zip that holds no DICOM file; it names what is there instead."""
    try:
        with open_members(path) as members:
            names = [member.short_name for member in members]
    except DataError as error:
        return error
    what, archives = ("folder" if is_folder(path) else "zip"), [name for name in names if is_archive(name)]
    found, hint = _listed(names) if names else "no file", "give a folder of one series, or a file"
    if archives:
        found = f"another archive in it: {_listed(archives)}"
        hint = "unpack it, and give the folder of one series"
    return DataError(f"the {what} holds no DICOM series", file=path, found=found, hint=hint)


def _no_series(path: Path, skipped: Sequence[str], unknown: Sequence[str]) -> DataError:
    found = f"{counted(len(skipped), 'other DICOM object')}: {', '.join(skipped[:5])}" if skipped else "no DICOM file"
    if unknown:
        found += f"; not DICOM: {', '.join(unknown[:5])}"
    return DataError("there is no series of CT, MR or PET slices", file=path, found=found, expected=EXPECTED)


def _several_series(path: Path, slices: dict[str, list[Header]]) -> DataError:
    """Return the error that lists the series of a folder."""
    in_zip = any(header.member.entry is not None for header in next(iter(slices.values())))
    choice = "unpack it, and give a file of the series" if in_zip else "give a file of the series instead of the folder"
    largest = sorted(slices.items(), key=lambda item: -len(item[1]))[:LISTED]
    lines = [f"{len(slices)}:", *(_describe(path, uid, headers) for uid, headers in largest)]
    if len(slices) > LISTED:
        lines.append(f"and {len(slices) - LISTED} more")
    return DataError(
        "there are several series",
        file=path,
        found="\n    ".join(lines),
        expected="one",
        hint=f"{choice}, or move the other series to folders of their own",
    )


def _describe(path: Path, uid: str, headers: Sequence[Header]) -> str:
    """Return one line about a series, also about one that cannot be read."""
    first = headers[0]
    parts = [first.text("Modality") or "no modality", f'"{first.text("SeriesDescription")[:60]}"']
    try:
        frames, grid = arrange([frame for header in headers for frame in read_frames(header)], path)
        parts += [counted(len(frames), "slice"), f"{' x '.join(f'{size:.4g}' for size in grid.spacing_mm)} mm"]
    except DataError as error:
        spacing = first.text("PixelSpacing")[:40] or "unknown"
        parts += [counted(len(headers), "file"), f"pixel spacing {spacing} mm", error.problem]
    entry = first.member.entry
    file = first.member.path if entry is None else entry.filename
    return f"{uid or 'no UID'}: {', '.join(parts)}, such as {file}"
