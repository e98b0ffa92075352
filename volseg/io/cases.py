"""Cases and the files they are made of: names, channels, and folders of scans to predict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError
from volseg.io.volumes import has_volume_suffix, volume_stem

CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's channel number at the end of a file's stem
LISTED = 20  # bad files named in one message


@dataclass(frozen=True)
class Case:
    """One scan, with its reference if there is one.

    Attributes:
        id: Name of the case, unique in its dataset.
        images: Files in the order of the channels (or one file that holds them all).
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

    Args:
        path: A file (with its sister channels), or a folder of scans.
        channels: Image channels of the model.

    Returns:
        The cases by name, without labels.

    Raises:
        DataError: There is nothing to read, or two files have the same case name.
    """
    path = Path(path)
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
    return [path] if name == case_name(path) else list(group_channels(find_volumes(path.parent))[name])


def sorted_cases(cases: Iterable[Case], folder: Path) -> tuple[Case, ...]:
    """The cases by id.

    Raises:
        DataError: Two cases have the same id (``x.nii`` beside ``x.nii.gz``).
    """
    cases = sorted(cases, key=lambda case: case.id)
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    refuse("several files have the same case name", folder, twice, mend="rename or remove all but one of each")
    return tuple(cases)


def refuse(problem: str, file: Path, bad: Iterable[object], mend: str | None = None) -> None:
    """Raises a DataError that lists what is bad, if anything is."""
    items = [str(item) for item in bad]
    if items:
        more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
        raise DataError(problem, file=file, found="\n    ".join([f"{len(items)}:", *items[:LISTED], *more]), mend=mend)
