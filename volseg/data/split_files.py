"""Files that state splits: nnU-Net's ``splits_final.json``, a CSV of cases and folds, the ``splits.json`` of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volseg.data.splits import Split
from volseg.errors import ConfigError, DataError, counted
from volseg.io.cases import refuse
from volseg.io.json_files import read_json
from volseg.io.rows import FOLD, read_rows

ALL = "all"
"""The fold that holds out nothing."""
TABLES = (".csv", ".tsv")
EXPECTED = 'a list of {"train": [...], "val": [...]} (nnU-Net), a CSV with case and fold, or the splits.json of a run'

Fold = int | str
"""Number of a fold from 0 on, or ``all``."""
Folds = dict[Fold, Split]
"""The splits by fold; the lists are as the file has them, unchecked."""


def read_split_file(file: Path) -> Folds:
    """Read a split file; which cases exist is not checked.

    Raises:
        ConfigError: It is missing, or of another form.
        DataError: The CSV cannot be read, or a row of it is invalid.
    """
    if file.suffix.lower() in TABLES:
        return _read_table(file)
    content = read_json(file, "split")
    if isinstance(content, list):
        if not content:
            raise ConfigError("the split file is not as expected", file=file, found="an empty list", expected=EXPECTED)
        return {fold: _lists(split, file) for fold, split in enumerate(content)}
    return {_fold(content, file): _lists(content, file)}


def read_run_split(file: Path) -> dict[str, Any]:
    """Read the ``splits.json`` of a run; its hash, if it has one, must be that of its lists.

    Raises:
        ConfigError: It is missing, damaged or changed, or a part of it is no list of cases.
    """
    hint = "restore the file, or choose another output="
    content = read_json(file, "split")
    split = _lists(content, file, hint)
    both = sorted(set(split["train"]) & set(split["val"]))
    if both:
        raise ConfigError("cases are both trained on and held out", file=file, found=", ".join(both[:5]), hint=hint)
    if not split["train"] or (not split["val"] and content.get("fold") != ALL):
        raise ConfigError("the split file has no list of cases under 'train' or 'val'", file=file, hint=hint)
    if "sha256" in content and content["sha256"] != split_sha256(split):
        raise ConfigError("the split file was changed since the run began", file=file, hint=hint)
    return dict(content)


def split_sha256(split: Mapping[str, Any]) -> str:
    """Return a hash of the training and held-out cases of a split."""
    text = json.dumps([split["train"], split["val"]])
    return hashlib.sha256(text.encode()).hexdigest()


def _lists(split: Any, file: Path, hint: str | None = None) -> Split:
    """Return the lists of one fold."""
    for part in ("train", "val"):
        names = split.get(part) if isinstance(split, dict) else None
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ConfigError(
                f"the split file has no list of cases under {part!r}",
                file=file,
                found=str(names if isinstance(split, dict) else split)[:80],
                expected=EXPECTED,
                hint=hint,
            )
    return {"train": split["train"], "val": split["val"]}


def _fold(content: Any, file: Path) -> Fold:
    """Return the fold of a run's split; files of other programs with one split have none."""
    fold = content.get("fold", 0) if isinstance(content, dict) else 0
    if fold != ALL and not (type(fold) is int and fold >= 0):
        raise ConfigError(
            "the fold of the split file is not a number", file=file, found=str(fold)[:80], expected="0 or more"
        )
    return fold if isinstance(fold, int) else ALL


def _read_table(file: Path) -> Folds:
    """Read a CSV with the columns ``case`` (or ``id``) and ``fold``; a case without a fold is always trained on."""
    rows = read_rows(file)
    header = [name.lower() for name in rows[0]] if rows else []
    case = next((header.index(name) for name in ("case", "id") if name in header), None)
    if case is None or "fold" not in header or len(rows) < 2:
        found = ", ".join(header)[:200] or "an empty file"
        raise DataError("the split file is not as expected", file=file, found=found, expected="columns case and fold")
    uneven = [f"row {line}: {len(row)}" for line, row in enumerate(rows[1:], start=2) if len(row) != len(header)]
    refuse(f"rows without exactly {counted(len(header), 'column')}", file, uneven)
    pairs = [(row[case], row[header.index("fold")]) for row in rows[1:]]
    invalid = [f"row {line}: {fold[:50]}" for line, (_, fold) in enumerate(pairs, start=2) if not _is_fold(fold)]
    refuse("folds that are not whole numbers from 0 on, or nothing", file, invalid)
    pairs = [(name, fold.partition(".")[0]) for name, fold in pairs]
    numbers = sorted({int(fold) for _, fold in pairs if fold})
    if not numbers:
        raise DataError("no case of the split file has a fold", file=file, expected="a number in the column fold")
    return {
        number: {
            "train": [name for name, fold in pairs if not fold or int(fold) != number],
            "val": [name for name, fold in pairs if fold and int(fold) == number],
        }
        for number in numbers
    }


def _is_fold(text: str) -> bool:
    return not text or FOLD.fullmatch(text) is not None
