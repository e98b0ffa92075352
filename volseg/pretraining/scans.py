"""Scans to pretrain on: those of a data set, whose labels are not read, or of a folder without labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.config.schema import Config
from volseg.data.split_files import ALL
from volseg.data.split_rules import choose_split
from volseg.data.splits import choose_shots
from volseg.errors import ConfigError, counted
from volseg.io.cases import Case, case_names, find_volumes, list_images, sorted_cases
from volseg.io.datasets import is_dataset, read_dataset
from volseg.io.dicom import is_series_folder
from volseg.io.modality import UNKNOWN
from volseg.io.paths import is_folder
from volseg.io.volumes import has_volume_suffix
from volseg.planning.fingerprint import spread

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanSplit:
    """Scans in two parts.

    Attributes:
        name: Name of the data set or folder.
        train: Scans that are trained on.
        held_out: Scans for the measures of the log.
        rule: How they were split.
        channels: Names of the channels of each scan; ``None`` where nothing states them.
    """

    name: str
    train: tuple[Case, ...]
    held_out: tuple[Case, ...]
    rule: str
    channels: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the names of the scans of both parts, and the rule."""
        train, val = ([case.id for case in part] for part in (self.train, self.held_out))
        return {"rule": self.rule, "train": train, "val": val}


def find_scans(config: Config) -> ScanSplit:
    """Find and split the scans of ``data.root``.

    Of a data set with labels, the training cases of ``data.fold`` are trained on, and its scans without labels unless
    they are a test set. Anything else is read as scans to predict, also in sub-folders.

    Raises:
        ConfigError: No folder is given, or there is no such fold.
        DataError: There are no scans.
    """
    if config.data.root is None:
        raise ConfigError("no scans are given", hint="add data.root=FOLDER")
    root = Path(config.data.root)
    split = _of_dataset(root, config) if is_dataset(root) else _of_folder(root, config)
    train, held_out = counted(len(split.train), "scan"), counted(len(split.held_out), "held-out scan")
    logger.info("%s, %s (%s)", train, held_out, split.rule)
    return split


def _of_dataset(root: Path, config: Config) -> ScanSplit:
    dataset = read_dataset(root, trainable=False)
    split = choose_split(dataset, config.data, config.seed)
    cases = {case.id: case for case in dataset.cases}
    more = () if dataset.test_split or config.data.shots is not None else dataset.unlabelled
    return ScanSplit(
        name=dataset.name,
        train=(*(cases[name] for name in split["train"]), *more),
        held_out=tuple(cases[name] for name in split["val"]),
        rule=split["rule"] + (f", and {counted(len(more), 'scan')} without labels" if more else ""),
        channels=None if UNKNOWN in dataset.channels else dataset.channels,
    )


def _of_folder(root: Path, config: Config) -> ScanSplit:
    cases = _scans_of(root)
    count = 0 if config.data.fold == ALL or len(cases) < 2 else max(1, round(config.pretrain.held_out * len(cases)))
    count = min(count if config.pretrain.held_out else 0, len(cases) - 1)
    held_out = {cases[index].id for index in spread(len(cases), count)} if count else set()
    train = choose_shots([case.id for case in cases if case.id not in held_out], config.data.shots, config.seed)
    return ScanSplit(
        name=root.resolve().stem,
        train=tuple(case for case in cases if case.id in train),
        held_out=tuple(case for case in cases if case.id in held_out),
        rule=f"{counted(count, 'scan')} of a folder without labels held out, evenly by name",
    )


def _scans_of(root: Path) -> tuple[Case, ...]:
    """Return the scans of a folder, or of its sub-folders if it holds none itself; each file or series is one."""
    is_empty = is_folder(root) and not is_series_folder(root) and not find_volumes(root)
    files = _below(root) if is_empty else []
    if not files:
        return tuple(list_images(root))
    names = case_names([(file,) for file in files])
    return sorted_cases([Case(name, (file,), None) for name, file in zip(names, files, strict=True)], root)


def _below(root: Path) -> list[Path]:
    """Return the files of scans in all sub-folders."""
    files = (path for path in root.rglob("*") if has_volume_suffix(path) and path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts))
