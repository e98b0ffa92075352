"""Cases and their files: names, channels, and folders or lists of scans to predict."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError
from volseg.io.volumes import has_volume_suffix, volume_stem

logger = logging.getLogger(__name__)

LIST_SUFFIX = ".txt"
COMMENT = re.compile(r"(^|\s)#.*")
CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's channel number at the end of a file's stem
LISTED = 20  # most items in one message


@dataclass(frozen=True)
class Case:
    """A scan and, if it exists, its reference.

    Attributes:
        id: Name of the case, unique in its dataset.
        images: One file per channel, in their order, or one file with all channels; for a DICOM series, its folder.
        label: File of the reference labels.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None


def case_name(path: str | Path) -> str:
    """Return the case name of a scan: its file name without suffix (``.nii.gz`` counts as one)."""
    return volume_stem(path)


def list_images(path: str | Path, channels: int = 1) -> list[Case]:
    """Find the scans to predict.

    With several channels, the files ``case_0000``, ``case_0001`` ... form a case, and a file without such a number
    holds all channels. With one channel each file is a case; ``_0000`` is removed from the names if all files have it.
    A case that lacks a channel is listed with its files, so that only this case fails.

    A list (``.txt``) has one case per line: a file as above, the folder of a DICOM series, or one path per channel,
    separated by commas or tabs. Paths are relative to the list; ``#`` begins a comment. The first path gives the name
    of the case. A path that does not exist is logged with its line and listed, so that only its case fails.

    Args:
        path: A file (with its sister channels), a folder of scans, or a list of scans.
        channels: Image channels of the model.

    Returns:
        The cases by name, without labels.

    Raises:
        DataError: There is no scan, two files have the same case name, or a list is invalid.
    """
    path = Path(path)
    if path.suffix.lower() == LIST_SUFFIX and path.is_file():
        return list(_read_list(path, channels))
    if path.is_dir():
        files = find_volumes(path)
    elif path.is_file():
        files = _sister_channels(path) if channels > 1 else [path]
    else:
        raise DataError("the input does not exist", file=path)
    if not files:
        raise DataError("the folder holds no scans", file=path, expected=".nii.gz or .nii files")
    first = [case_name(file).endswith("_0000") for file in files]
    groups = group_channels(files) if (any(first) if channels > 1 else all(first)) else {}
    cases = [Case(name, images, None) for name, images in groups.items()]
    return list(sorted_cases(cases or [Case(case_name(file), (file,), None) for file in files], path))


def find_volumes(folder: Path) -> list[Path]:
    """Return the scans of a folder, sorted by name; hidden files (``._x`` of macOS) are skipped.

    Raises:
        DataError: The folder does not exist, or reading it is not permitted.
    """
    try:
        return sorted(path for path in folder.iterdir() if has_volume_suffix(path) and path.is_file())
    except OSError as error:
        raise DataError("the folder cannot be read", file=folder, found=error.strerror) from error


def group_channels(files: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Group files by case name, without the channel number at its end; the files of a case are in channel order."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(files, key=case_name):
        groups.setdefault(CHANNEL.sub("", case_name(path)), []).append(path)
    return {name: tuple(paths) for name, paths in groups.items()}


def _sister_channels(path: Path) -> list[Path]:
    """Return all files of the case that a ``case_0000`` file belongs to."""
    name = CHANNEL.sub("", case_name(path))
    if name == case_name(path):
        return [path]
    return list(group_channels(find_volumes(path.parent)).get(name, [path]))


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
    absent = [f"line {number}: {path}" for number, paths in rows for path in paths if not _exists(path)]
    if not any(_exists(path) for _, paths in rows for path in paths):
        refuse("none of the listed scans exists", file, absent, hint=f"give paths relative to {file.parent.resolve()}")
    for problem in absent:
        logger.warning("%s: %s does not exist", file, problem)
    return _named_cases(rows, file, channels)


def _lines(file: Path) -> Iterable[tuple[int, str]]:
    return enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1)


def is_file(path: Path) -> bool:
    """Return whether a path leads to a file; a name that is too long does not."""
    try:
        return path.is_file()
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def _listed_paths(text: str, whole: str, folder: Path, channels: int) -> tuple[Path, ...]:
    """Return the paths of a line; a line that is an existing path is taken whole, with its commas and ``#``.

    Args:
        text: The line without its comment.
        whole: The line.
        folder: What paths are relative to.
        channels: Image channels of the model.
    """
    if (whole != text or "," in text or "\t" in text) and _exists(folder / whole):
        return (folder / whole,)
    paths = tuple(folder / part.strip() for part in text.split("\t" if "\t" in text else ","))
    return tuple(_sister_channels(paths[0])) if len(paths) == 1 < channels and paths[0].is_file() else paths


def _named_cases(rows: list[tuple[int, tuple[Path, ...]]], file: Path, channels: int) -> tuple[Case, ...]:
    """Return the cases of a list sorted by id, named as those of a folder.

    Raises:
        DataError: Two lines have the same case name.
    """
    names = [paths[0].name if paths[0].is_dir() else case_name(paths[0]) for _, paths in rows]
    alike = channels == 1 and all(name.endswith("_0000") for name in names)
    names = [CHANNEL.sub("", name) if alike or len(row[1]) > 1 else name for name, row in zip(names, rows, strict=True)]
    lines: dict[str, list[int]] = {}
    for name, (number, _) in zip(names, rows, strict=True):
        lines.setdefault(name, []).append(number)
    repeated = [f"{name}: lines {', '.join(map(str, at))}" for name, at in lines.items() if len(at) > 1]
    refuse("several lines have the same case name", file, repeated, hint="link or copy the scans under different names")
    return sorted_cases([Case(name, paths, None) for name, (_, paths) in zip(names, rows, strict=True)], file)


def sorted_cases(cases: Iterable[Case], folder: Path) -> tuple[Case, ...]:
    """Sort cases by id.

    Raises:
        DataError: Two cases have the same id (``x.nii`` beside ``x.nii.gz``).
    """
    cases = sorted(cases, key=lambda case: case.id)
    repeated = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    refuse("several files have the same case name", folder, repeated, hint="rename or remove all but one of each")
    return tuple(cases)


def refuse(problem: str, file: Path, invalid: Iterable[object], hint: str | None = None) -> None:
    """Raise a DataError that lists all invalid items, if there are any."""
    items = [str(item) for item in invalid]
    if items:
        more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
        raise DataError(problem, file=file, found="\n    ".join([f"{len(items)}:", *items[:LISTED], *more]), hint=hint)
