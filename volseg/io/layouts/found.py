"""What a layout finds in a folder, and what several layouts share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError
from volseg.io.cases import Case, case_name, find_volumes, refuse, sorted_cases
from volseg.io.labels import LabelMap
from volseg.io.modality import UNKNOWN

USE_CSV = "list the files in a CSV with the columns image and label, and give the CSV as the data set"


@dataclass(frozen=True)
class Found:
    """The cases of a folder in one layout.

    Attributes:
        cases: Scans with labels.
        unlabelled: Scans without labels, such as those of ``imagesTs``.
        channels: Names of the channels, where files or columns state them or their order.
        label_map: The classes, where files beside the labels state them.
        labels_required: Whether ``dataset.json`` must state the classes; otherwise they are collected from the labels.
    """

    cases: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    channels: tuple[str, ...] | None = None
    label_map: LabelMap | None = None
    labels_required: bool = False


def by_name(folder: Path) -> dict[str, Path]:
    """Return the scans of a folder by case name.

    Raises:
        DataError: The folder cannot be read, or two files have the same case name.
    """
    cases = sorted_cases([Case(case_name(path), (path,), None) for path in find_volumes(folder)], folder)
    return {case.id: case.images[0] for case in cases}


def paired(root: Path, images: Mapping[str, tuple[Path, ...]], references: Mapping[str, Path]) -> tuple[Case, ...]:
    """Pair images and labels of the same case name.

    Raises:
        DataError: A case has no image, or no label; all such cases are named.
    """
    unpaired = [f"{name}: image without label" for name in sorted(images.keys() - references.keys())]
    unpaired += [f"{name}: label without image" for name in sorted(references.keys() - images.keys())]
    hint = "add the missing files, or move these to another folder"
    refuse("images and labels do not pair up", root, unpaired, hint=hint)
    return tuple(Case(name, paths, references[name]) for name, paths in images.items())


def check_numbers(folder: Path, groups: Mapping[str, Sequence[Path]], channels: int) -> dict[str, tuple[Path, ...]]:
    """Check that the files of each case are numbered ``_0000``, ``_0001`` ... without a hole, and return them.

    Raises:
        DataError: Some are not; all such cases are named.
    """
    expected = [f"_{number:04d}" for number in range(channels)]
    endings = {name: [case_name(path).removeprefix(name) for path in paths] for name, paths in groups.items()}
    wrong = [f"{name}: {', '.join(ends)}" for name, ends in endings.items() if ends != expected]
    refuse(f"cases without exactly the channels {', '.join(expected)}", folder, wrong)
    return {name: tuple(paths) for name, paths in groups.items()}


def channel_order(names: Iterable[str], stated: tuple[str, ...] | None, file: Path) -> tuple[tuple[str, ...], str]:
    """Return which channels there are, in their order, and who says so.

    Args:
        names: The channels as files or columns are called, in the order to take if nothing else states one.
        stated: The channels of ``dataset.json``.
        file: The data set, for the message.

    Returns:
        Names as files or columns have them, and ``"dataset.json"`` or ``"their names"``.

    Raises:
        DataError: ``dataset.json`` states channels that no file is called by.
    """
    plain = {_plain(name): name for name in names}
    if stated is None or (len(stated) == len(plain) == 1):
        return tuple(plain.values()), "their names"
    missing = [name for name in stated if _plain(name) not in plain]
    if missing:
        raise DataError(
            "dataset.json states channels that the files do not have",
            file=file,
            found=", ".join(plain.values()),
            expected=", ".join(stated),
            hint=f"name the channels in dataset.json as the files are called, or {USE_CSV}",
        )
    return tuple(plain[_plain(name)] for name in stated), "dataset.json"


def _plain(name: str) -> str:
    return name.strip().casefold()


GENERIC = frozenset({"", "image", "images", "img", "scan", "volume", "vol", "data", "0", "0000"})
"""Names of image files that say nothing about their modality."""


def modality_name(name: str) -> str:
    """Return the name of a channel that a file or column is called by; ``unknown`` for one such as ``image``."""
    return UNKNOWN if _plain(name) in GENERIC else name
