"""Cases and their files: names, channels, and folders or lists of scans to predict."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError, GeometryError
from volseg.io.dicom import is_series_folder
from volseg.io.paths import exists, is_file, is_folder, listed_path
from volseg.io.volumes import GRID_MM, LONGEST_PATH, check_path, count_channels, has_volume_suffix, is_scan, volume_stem

logger = logging.getLogger(__name__)

LIST_SUFFIX = ".txt"
COMMENT = re.compile(r"(^|\s)#.*")
FIRST_CHANNEL = "_0000"
CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's channel number at the end of a file's stem
UNUSABLE = re.compile(r"[/\\\x00-\x1f]")
BESIDE_SCANS = (
    *(".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".txt", ".md", ".html", ".log"),
    *(".npy", ".npz", ".pkl", ".raw", ".zraw", ".hdr"),
)
"""Endings of files that tools write beside scans and masks; they are skipped without a warning."""
SYSTEM_FILES = ("desktop.ini", "thumbs.db", "ehthumbs.db", "icon\r")
"""Names of files, lower case, that Windows and macOS put into folders."""
LISTED = 20  # most items in one message


@dataclass(frozen=True)
class GridRule:
    """When the grids of a case's files count as the same.

    Attributes:
        tolerance_mm: Largest distance of corresponding corners.
        label_takes_image_grid: Take a label whose header differs, but not its shape, to lie on the image's grid.
    """

    tolerance_mm: float = GRID_MM
    label_takes_image_grid: bool = False


@dataclass(frozen=True)
class Case:
    """A scan and, if it exists, its reference.

    Attributes:
        id: Name of the case, unique in its dataset.
        images: One file (or DICOM series: a folder, a zip or one of its files) per channel, in their order, or one file
            with all channels.
        label: File of the reference labels.
        patient: Whose scan it is, where the data set says so. Cases of one patient belong on one side of a split.
        fold: The fold in which the case is held out, where the data set states its folds; there, a case without one is
            trained on in every fold.
        grids: When the grids of its files count as the same.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str | None = None
    fold: int | None = None
    grids: GridRule = GridRule()


def of_one_patient(cases: Sequence[Case]) -> bool:
    """Return whether the data set states one and the same patient for all of some cases."""
    return cases[0].patient is not None and len({case.patient for case in cases}) == 1


def case_name(path: str | Path) -> str:
    """Return the case name of a scan: its file name without suffix (``.nii.gz`` counts as one), or its folder."""
    return volume_stem(path)


def list_images(path: str | Path, channels: int = 1) -> list[Case]:
    """Find the scans to predict.

    With several channels, the files ``case_0000``, ``case_0001`` ... form a case, and a file without such a number
    holds all channels; a number counts only where ``case_0000`` exists and has one channel. With one channel each file
    is a case; ``_0000`` is removed from the names if all files have it. A case that lacks a channel is listed with the
    file that is missing, so that only this case fails.

    A folder that holds DICOM files is one case; otherwise each of its sub-folders and zips that holds a DICOM series
    is one.

    A list (``.txt``) has one case per line: a file as above, or one path per channel, separated by commas or tabs.
    Paths are relative to the list, and may stand in quotes; ``#`` begins a comment. The first path gives the name of
    the case (see :func:`case_names`). A path that does not exist is logged with its line and listed, so that only its
    case fails.

    Args:
        path: A file (with its sister channels), a folder of scans, the folder of a DICOM series, or a list of scans.
        channels: Image channels of the model.

    Returns:
        The cases by name, without labels.

    Raises:
        DataError: There is no scan, two files have the same case name, a list is invalid, or a folder holds scans
            beside the slices of a series.
    """
    path = Path(path)
    if path.suffix.lower() == LIST_SUFFIX and is_file(path):
        return list(_read_list(path, channels))
    if is_series_folder(path):
        beside = [file.name for file in list_folder(path) if has_volume_suffix(file)]
        hint = "move them to folders of their own, or list the scans to predict in a .txt file"
        refuse("the folder holds scans beside the slices of a DICOM series", path, beside, hint=hint)
        files = [path]
    elif is_folder(path):
        files = find_volumes(path)
        log_passed_over(path)
    elif is_file(path):
        files = _sister_channels(path, channels)
    else:
        check_path(path)
        files = [path]
    if not files:
        expected = ".nii.gz or .nii files, or folders or zips of DICOM series"
        raise DataError("the folder holds no scans", file=path, expected=expected)
    first = [case_name(file).endswith(FIRST_CHANNEL) for file in files]
    numbered = any(first) and not _holds_channels(files[first.index(True)]) if channels > 1 else all(first)
    groups = group_channels(files) if numbered else {}
    cases = [Case(name, _all_channels(name, images, channels), None) for name, images in groups.items()]
    if channels == 1:
        _warn_of_channels(files)
    return list(sorted_cases(cases or [Case(case_name(file), (file,), None) for file in files], path))


def find_volumes(folder: Path) -> list[Path]:
    """Return the scans of a folder, sorted by name; hidden files (``._x`` of macOS) are skipped.

    A sub-folder or zip that holds a DICOM series is a scan.

    Links that lead to nothing, and folders or pipes with the name of a scan, are returned too: reading them is an error
    that names them.

    Raises:
        DataError: The folder does not exist, or reading it is not permitted.
    """
    return [path for path in list_folder(folder) if is_scan(path)]


def list_folder(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name.

    Raises:
        DataError: The folder does not exist, or reading it is not permitted.
    """
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        found = error.strerror if isinstance(error, OSError) else error
        raise DataError("the folder cannot be read", file=str(folder)[:LONGEST_PATH], found=found) from error


def log_passed_over(folder: Path) -> None:
    """Warn of entries that are not scans and not files that tools write beside scans."""
    others = [path.name for path in passed_over(folder)]
    if others:
        logger.warning("%s: not read as scans: %s", folder, listed(others))


def passed_over(folder: Path) -> list[Path]:
    """Return the entries that are not scans and not files that tools and systems write beside scans."""
    entries = [path for path in list_folder(folder) if not is_scan(path) and not path.name.startswith(".")]
    entries = [path for path in entries if path.name.lower() not in SYSTEM_FILES]
    return [path for path in entries if is_folder(path) or path.suffix.lower() not in BESIDE_SCANS]


def _all_channels(name: str, images: tuple[Path, ...], channels: int) -> tuple[Path, ...]:
    """Return the numbered files that a case must have, and those beyond; without numbers, the files that it has.

    A case with more channels than the model fails when it is read, as a file with more channels does: its first ones
    need not be those of the model.

    Args:
        name: The case.
        images: Its files.
        channels: Image channels of the model; with one, the files are left as they are.
    """
    numbers = {case_name(path).removeprefix(name): path for path in images}
    if channels == 1 or not all(CHANNEL.fullmatch(number) for number in numbers):
        return images
    expected = [f"_{number:04d}" for number in range(channels)]
    beyond = [path for number, path in sorted(numbers.items()) if number not in expected]
    suffix = images[0].name[len(case_name(images[0])) :]
    own = [numbers.get(number, images[0].with_name(f"{name}{number}{suffix}")) for number in expected]
    return (*own, *beyond)


def _warn_of_channels(files: Sequence[Path]) -> None:
    """Warn of files that look like the second channel of another one."""
    names = {case_name(file) for file in files}
    second = sorted(f"{name}_0001" for name in (CHANNEL.sub("", one) for one in names if one.endswith(FIRST_CHANNEL)))
    second = [name for name in second if name in names]
    if second:
        text = "the model has one channel; each file is a case, also those that look like a second channel: %s"
        logger.warning(text, listed(second))


def group_channels(files: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Group files by case name, without the channel number at its end; the files of a case are in channel order.

    Four digits at the end are a channel number only where ``_0000`` exists: ``brain_1000`` alone is a case.
    """
    files = sorted(files, key=case_name)
    names = {case_name(path) for path in files}
    groups: dict[str, list[Path]] = {}
    for path in files:
        name = CHANNEL.sub("", case_name(path))
        groups.setdefault(name if f"{name}{FIRST_CHANNEL}" in names else case_name(path), []).append(path)
    return {name: tuple(paths) for name, paths in groups.items()}


def case_names(rows: Sequence[Sequence[Path]]) -> list[str]:
    """Name cases that are given as lists of files.

    A case has the name of its first file, without ``_0000`` where it has several files. Where these names are not all
    different, cases are named by the parts of their paths that differ: ``a/t1.nii.gz`` and ``b/t1.nii.gz`` are ``a``
    and ``b``; ``a/t1``, ``a/t2`` and ``b/t1`` are ``a_t1``, ``a_t2`` and ``b_t1``.

    Args:
        rows: The files of each case, at least one.

    Returns:
        The names in the same order; they repeat only where the same file does.
    """
    names = [case_name(row[0]) for row in rows]
    names = [name.removesuffix(FIRST_CHANNEL) if len(row) > 1 else name for name, row in zip(names, rows, strict=True)]
    if len(set(names)) == len(names):
        return names
    folders = [Path(os.path.abspath(row[0])).parent for row in rows]  # noqa: PTH100 (resolve would follow links)
    parts = [(*folder.parts, name) for folder, name in zip(folders, names, strict=True)]
    start = _common(parts)
    parts = [part[start:] for part in parts]
    stop = _common([part[::-1] for part in parts])
    by_path = ["_".join(part[: len(part) - stop] or part) for part in parts]
    return by_path if len(set(by_path)) == len(by_path) else names


def _common(parts: Sequence[Sequence[str]]) -> int:
    """Return how many of the first parts are the same in all."""
    return next(
        (at for at, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), min(map(len, parts))
    )


def _holds_channels(file: Path) -> bool:
    """Return whether a file has several channels; one that cannot be read does not count, and fails when it is read."""
    try:
        return count_channels(file) > 1
    except (DataError, GeometryError):
        return False


def _sister_channels(path: Path, channels: int) -> list[Path]:
    """Return all files of the case that a ``case_0000`` file belongs to, if the model has several channels.

    The number of a DICOM file is that of a slice.
    """
    if not is_scan(path):
        return [path]
    name = CHANNEL.sub("", case_name(path))
    suffix = path.name[len(case_name(path)) :]
    first = path.with_name(f"{name}{FIRST_CHANNEL}{suffix}")
    if channels == 1 or name == case_name(path) or not exists(first) or _holds_channels(first):
        return [path]
    one_more = channels + 1  # by which the scan is found to have too many
    sisters = [path.with_name(f"{name}_{number:04d}{suffix}") for number in range(one_more)]
    return [sister for sister in sisters if exists(sister)] if path in sisters else [path]


def _read_list(file: Path, channels: int) -> tuple[Case, ...]:
    """Read the cases of a list file."""
    try:
        lines = [(number, COMMENT.sub("", line).strip(), line.strip()) for number, line in _lines(file)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the list of scans cannot be read", file=file, found=error, expected="UTF-8 text") from error
    rows = [(number, _listed_paths(text, whole, file.parent, channels)) for number, text, whole in lines if text]
    if not rows:
        raise DataError("the list names no scans", file=file, expected="one path a line")
    gaps = [f"line {number}" for number, paths in rows if file.parent in paths]
    refuse("lines with an empty path between their separators", file, gaps)
    absent = [f"line {number}: {path}" for number, paths in rows for path in paths if not exists(path)]
    if not any(exists(path) for _, paths in rows for path in paths):
        refuse("none of the listed scans exists", file, absent, hint=f"give paths relative to {file.parent.resolve()}")
    for problem in absent:
        logger.warning("%s: %s does not exist", file, problem)
    return _named_cases(rows, file, channels)


def _lines(file: Path) -> Iterable[tuple[int, str]]:
    return enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1)


def _listed_paths(text: str, whole: str, folder: Path, channels: int) -> tuple[Path, ...]:
    """Return the paths of a line; a line that is an existing path is taken whole, with its commas and ``#``.

    Args:
        text: The line without its comment.
        whole: The line.
        folder: What paths are relative to.
        channels: Image channels of the model.
    """
    if (whole != text or "," in text or "\t" in text) and exists(_listed_file(whole, folder)):
        return (_listed_file(whole, folder),)
    paths = tuple(_listed_file(part.strip(), folder) for part in text.split("\t" if "\t" in text else ","))
    return tuple(_sister_channels(paths[0], channels)) if len(paths) == 1 and is_file(paths[0]) else paths


def _listed_file(text: str, folder: Path) -> Path:
    """Return a path of a list; quotes around one do not count, unless they are a part of its name."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return listed_path(text[1:-1] if quoted and not exists(folder / text) else text, folder)


def _named_cases(rows: list[tuple[int, tuple[Path, ...]]], file: Path, channels: int) -> tuple[Case, ...]:
    """Return the cases of a list sorted by id, named as those of a folder.

    Raises:
        DataError: Two lines have the same case name.
    """
    names = case_names([paths for _, paths in rows])
    if channels == 1 and all(name.endswith(FIRST_CHANNEL) for name in names):
        names = [name.removesuffix(FIRST_CHANNEL) for name in names]
    lines: dict[str, list[int]] = {}
    for name, (number, _) in zip(names, rows, strict=True):
        lines.setdefault(name, []).append(number)
    repeated = [f"{name}: lines {', '.join(map(str, at))}" for name, at in lines.items() if len(at) > 1]
    refuse("several lines have the same case name", file, repeated, hint="link or copy the scans under different names")
    return sorted_cases([Case(name, paths, None) for name, (_, paths) in zip(names, rows, strict=True)], file)


def sorted_cases(cases: Iterable[Case], folder: Path) -> tuple[Case, ...]:
    """Sort cases by id.

    Raises:
        DataError: Two cases have the same id (``x.nii`` beside ``x.nii.gz``), or an id cannot name a file.
    """
    cases = sorted(cases, key=lambda case: case.id)
    invalid = [repr(case.id) for case in cases if case.id in ("", ".", "..") or UNUSABLE.search(case.id)]
    refuse("case names that cannot be file names", folder, invalid, hint="use no slashes and no control characters")
    repeated = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    refuse("several files have the same case name", folder, repeated, hint="rename or remove all but one of each")
    return tuple(cases)


def listed(items: Sequence[str]) -> str:
    """Return the first items in one line, and how many follow."""
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def refuse(problem: str, file: Path, invalid: Iterable[object], hint: str | None = None) -> None:
    """Raise a DataError that lists all invalid items, if there are any."""
    items = [str(item) for item in invalid]
    if items:
        more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
        raise DataError(problem, file=file, found="\n    ".join([f"{len(items)}:", *items[:LISTED], *more]), hint=hint)
