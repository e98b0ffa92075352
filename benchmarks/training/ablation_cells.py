"""The cells of an ablation: runs of one change of the network at one budget, and their Dice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.record import Record
from training.runs import FINISHED, read_cases
from training.unchanged import check_pairs
from volseg.metrics.statistics import bootstrap_means, interval

Array = NDArray[np.float64]
COLUMNS = ("budget", "cell", "seed", "case", "class", "dice", "hd95", "nsd")


@dataclass(frozen=True)
class Cell:
    """A row of a table: one change of the network at one budget.

    Attributes:
        name: Name of the change.
        runs: Records of its runs.
        dice: Dice ``(cases, classes)`` of each seed.
    """

    name: str
    runs: list[Record]
    dice: dict[int, Array]


def read_runs(folder: Path, order: Sequence[str]) -> tuple[list[Record], list[Record]]:
    """Read the records and the scores per case and class of all finished runs.

    Raises:
        SystemExit: There is none, or those of a budget hold out different cases.
    """
    records, rows = [], []
    for budget in sorted(path for path in folder.glob("*") if path.name[0].isdigit()):
        cells = {}
        for name in order:
            for file in sorted((budget / name.replace(" ", "_")).glob(f"seed*/{FINISHED}")):
                record = {"budget": budget.name, **json.loads(file.read_text(encoding="utf-8"))}
                origin = {"budget": budget.name, "cell": name, "seed": record["seed"]}
                records.append(record)
                cells[str(file.parent)] = scores = read_cases(file.parent)
                rows += [{key: {**row, **origin}[key] for key in COLUMNS} for row in scores]
        check_pairs(cells)
    if not records:
        raise SystemExit(f"no finished cell in {folder}")
    return records, rows


def cells_of(records: Sequence[Record], rows: Sequence[Record]) -> dict[str, list[Cell]]:
    """Return the cells of each budget, from records and scores as they are written to JSON and CSV."""
    budgets: dict[str, list[Cell]] = {}
    for budget, name in dict.fromkeys((record["budget"], record["model"]) for record in records):
        runs = [record for record in records if (record["budget"], record["model"]) == (budget, name)]
        scores = [row for row in rows if (row["budget"], row["cell"]) == (budget, name)]
        axes = [list(dict.fromkeys(row[key] for row in rows if row["budget"] == budget)) for key in ("case", "class")]
        dice = {run["seed"]: dice_of([row for row in scores if int(row["seed"]) == run["seed"]], *axes) for run in runs}
        budgets.setdefault(budget, []).append(Cell(name, runs, dice))
    return budgets


def dice_of(rows: Sequence[Record], cases: Sequence[str], classes: Sequence[str]) -> Array:
    """Return the Dice of a run, (cases, classes); NaN where it is not defined."""
    dice = np.full((len(cases), len(classes)), np.nan)
    for row in rows:
        if row["dice"] != "":
            dice[cases.index(row["case"]), classes.index(row["class"])] = float(row["dice"])
    return dice


def mean_dice(cell: Cell) -> Array:
    """Return the Dice of a cell (cases, classes), the mean over its seeds."""
    return nan_mean(list(cell.dice.values()), axis=0)


def difference_to(first: Cell, cell: Cell) -> Array:
    """Return the Dice of a cell minus that of the first, the mean over shared seeds; NaN if there are none."""
    shared = sorted(first.dice.keys() & cell.dice.keys())
    if not shared:
        return np.full_like(mean_dice(cell), np.nan)
    return nan_mean([cell.dice[seed] - first.dice[seed] for seed in shared], axis=0)


def mean_interval(values: Array) -> tuple[float, float, float]:
    """Return the mean over cases, then over classes, of (cases, classes), and its 95% interval over cases.

    Undefined scores (NaN) are skipped, with the classes that no case has; a single case has no interval.
    """
    low = high = np.nan
    if len(values) > 1:
        low, high = interval(nan_mean(bootstrap_means(values), axis=1)[:, None])[:, 0]
    return float(nan_mean(nan_mean(values, axis=0), axis=0)), float(low), float(high)


def nan_mean(values: ArrayLike, axis: int) -> Array:
    """Return the mean of the values that are not NaN, and NaN where all are."""
    numbers = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(numbers)
    count = defined.sum(axis=axis)
    total = np.where(defined, numbers, 0.0).sum(axis=axis)
    return np.asarray(np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0))
