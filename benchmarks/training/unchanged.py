"""Whether a run in a folder has the settings, cases and split of a command, and whether cells can be paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from volseg.config.load import load_config
from volseg.config.schema import Config
from volseg.data.split_rules import choose_split
from volseg.io.datasets import read_dataset
from volseg.io.json_files import read_json
from volseg.preprocessing.cache import input_identity
from volseg.training.inputs import INPUTS_FILE, SPLIT_FILE
from volseg.training.resume import CONFIG_FILE, MAY_CHANGE, changes

HINT = "give another --runs or --out, or delete this folder to train the cell again"
BATCH_SIZE = "train.batch_size"
"""The configuration of a run states the batch size of the plan, where none was given."""


def check_unchanged(folder: Path, config: Path, settings: Sequence[str]) -> None:
    """Check that the run in a folder, finished or interrupted, is the one that a command would start.

    The code may have changed: the tables name the commits.

    Raises:
        SystemExit: Settings, cases or split differ.
    """
    if not (folder / CONFIG_FILE).exists():
        return
    given = load_config(config, settings)
    lines = [*_changed_settings(folder, given), *_changed_data(folder, given)]
    if lines:
        raise SystemExit("\n  ".join([f"{folder} holds a run of other settings or data:", *lines, HINT]))


def _changed_settings(folder: Path, given: Config) -> list[str]:
    found = changes(load_config(folder / CONFIG_FILE), given)
    of_plan = given.train.batch_size is None
    return [str(one) for one in found if one.key not in MAY_CHANGE and not (of_plan and one.key == BATCH_SIZE)]


def _changed_data(folder: Path, given: Config) -> list[str]:
    if not all((folder / name).exists() for name in (INPUTS_FILE, SPLIT_FILE)):
        return []
    now, then = contents(str(given.data.root)), read_json(folder / INPUTS_FILE, "inputs")["cases"]
    others = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    if others:
        return [f"cases of {given.data.root} that are missing, new or changed: {_some(others)}"]
    split, stored = (
        choose_split(read_dataset(given.data.root), given.data, given.seed),
        read_json(folder / SPLIT_FILE, "split"),
    )
    moved = sorted({name for part in ("train", "val") for name in {*split[part]} ^ {*stored[part]}})
    return [f"cases in another part of the split: {_some(moved)}"] if moved else []


@cache
def contents(root: str) -> dict[str, dict[str, str]]:
    """Return the hashes of the files of each case of a data set; a command reads them once."""
    return {case.id: input_identity(case) for case in read_dataset(root).cases}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_pairs(cells: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Check that cells with the same held-out fold have scores of the same cases and classes.

    Args:
        cells: Folder of each cell -> its scores, a row per case and class.

    Raises:
        SystemExit: Cases or classes differ, or a case could not be scored; their tables would compare other things.
    """
    first, expected = "", dict[str, list[str]]()
    for folder, rows in cells.items():
        found: dict[str, list[str]] = {}
        for row in rows:
            if row["status"] == "failed":
                raise SystemExit(
                    f"{folder}: {row['case']} has no scores ({row['error']}); delete this folder to repeat it"
                )
            found.setdefault(row["case"], []).append(row["class"])
        if not first:
            first, expected = folder, found
        elif others := sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)):
            raise SystemExit(
                f"{folder} and {first} hold out other cases or classes ({_some(others)}), so they cannot stand in one "
                "table; delete the one that is wrong, or give another --runs"
            )
