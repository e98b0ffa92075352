"""Cases and the files they are made of: names, channels, and folders of scans to predict."""

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
LISTED = 20  # bad files named in one message


@dataclass(frozen=True)
class Case:
    """One scan, with its reference if there is one.

    Attributes:
        id: Name of the case, unique in its dataset.
        images: Files in the order of the channels (or one file that holds them all); a DICOM series is its folder.
        label: File of the reference labels.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None


def case_name(path: str | Path) -> str:
    """The name of a scan's case: its file name without suffix (``.nii.gz`` counts as one)."""
    return volume_stem(path)


def list_images(path: str | Path, channels: int = 1) -> list[Case]:
    """Finds the scans to predict.

    With several channels, files ``case_0000``, ``case_0001`` ... form a case, and a file without such a number holds
    all its channels. With one channel a file is a case; ``_0000`` is taken off the names if all files have it.
    A case that lacks a channel is listed with the files it has, so that reading it fails alone.

    A list (``.txt``) has one case a line: a file as above or the folder of a DICOM series, or one for each channel,
    separated by commas or tabs. Paths are relative to the list; ``#`` begins a comment. A case takes its name from
    its first path. One that does not exist is reported with its line and listed, so that reading it fails alone.

    Args:
        path: A file (with its sister channels), a folder of scans, or a list of scans.
        channels: Image channels of the model.

    Returns:
        The cases by name, without labels.

    Raises:
        DataError: There is nothing to read, two files have the same case name, or a list is not valid.
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
    """The scans of a folder by name, hidden files (macOS's ``._x``) left out.

    Raises:
        DataError: The folder does not exist or may not be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if has_volume_suffix(path) and path.is_file())
    except OSError as error:
        raise DataError("the folder cannot be read", file=folder, found=error.strerror) from error


def group_channels(files: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Files by case, the channel number at the end of the name taken off; a case's files in the order of channels."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(files, key=case_name):
        groups.setdefault(CHANNEL.sub("", case_name(path)), []).append(path)
    return {name: tuple(paths) for name, paths in groups.items()}


def _sister_channels(path: Path) -> list[Path]:
    """The files of the same case beside a ``case_0000`` file."""
    name = CHANNEL.sub("", case_name(path))
    if name == case_name(path):
        return [path]
    return list(group_channels(find_volumes(path.parent)).get(name, [path]))


def _read_list(file: Path, channels: int) -> tuple[Case, ...]:
    """The cases of a list file."""
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


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def _listed_paths(text: str, whole: str, folder: Path, channels: int) -> tuple[Path, ...]:
    """The paths of a line; a line that exists as it stands is one path, whatever commas and # it holds.

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
    """Cases by id, named as those of a folder are.

    Raises:
        DataError: Two lines have the same case name.
    """
    names = [paths[0].name if paths[0].is_dir() else case_name(paths[0]) for _, paths in rows]
    alike = channels == 1 and all(name.endswith("_0000") for name in names)
    names = [CHANNEL.sub("", name) if alike or len(row[1]) > 1 else name for name, row in zip(names, rows, strict=True)]
    lines: dict[str, list[int]] = {}
    for name, (number, _) in zip(names, rows, strict=True):
        lines.setdefault(name, []).append(number)
    twice = [f"{name}: lines {', '.join(map(str, found))}" for name, found in lines.items() if len(found) > 1]
    refuse("several lines have the same case name", file, twice, hint="link or copy the scans under different names")
    return sorted_cases([Case(name, paths, None) for name, (_, paths) in zip(names, rows, strict=True)], file)


def sorted_cases(cases: Iterable[Case], folder: Path) -> tuple[Case, ...]:
    """The cases by id.

    Raises:
        DataError: Two cases have the same id (``x.nii`` beside ``x.nii.gz``).
    """
    cases = sorted(cases, key=lambda case: case.id)
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    refuse("several files have the same case name", folder, twice, hint="rename or remove all but one of each")
    return tuple(cases)


def refuse(problem: str, file: Path, bad: Iterable[object], hint: str | None = None) -> None:
    """Raises a DataError that lists what is bad, if anything is."""
    items = [str(item) for item in bad]
    if items:
        more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
        raise DataError(problem, file=file, found="\n    ".join([f"{len(items)}:", *items[:LISTED], *more]), hint=hint)
