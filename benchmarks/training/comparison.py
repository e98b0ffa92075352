"""Scores of the cells of a comparison: models by folds and seeds, paired by case."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.record import Record
from training.ablation_cells import nan_mean
from training.runs import FINISHED, read_cases
from training.unchanged import check_pairs
from volseg.training.run_log import read_metrics

Array = NDArray[np.float64]
Draw = tuple[int, int]
"""Fold and seed."""
NNUNET_SGD = ["train.optimizer=sgd", "train.lr=0.01", "train.weight_decay=3e-5", "train.clip_norm=12"]
MODELS: dict[str, list[str]] = {
    "volseg": [],
    "identity": ["model.encoder=identity"],
    "dynunet": ["model.baseline=dynunet"],
    "dynunet_sgd": ["model.baseline=dynunet", *NNUNET_SGD],
    "unetr": ["model.baseline=unetr"],
    "swinunetr": ["model.baseline=swinunetr"],
}
"""Settings that each model changes; all others are the same for all."""
METRICS = ("dice", "hd95", "nsd")
COLUMNS = ("model", "fold", "seed", "case", "class", *METRICS)


@dataclass(frozen=True)
class Model:
    """A row of a table.

    Attributes:
        name: Name of the model.
        runs: Records of its cells.
        scores: For each fold and seed, metric -> case -> scores of all classes; NaN where one is not defined.
    """

    name: str
    runs: list[Record]
    scores: dict[Draw, dict[str, dict[str, Array]]]

    def values(self, metric: str, draws: Sequence[Draw] | None = None) -> Array:
        """Return scores (cases, classes): the mean over seeds, with the cases of all folds below each other.

        Args:
            metric: Name of the metric.
            draws: Folds and seeds that count; all by default.
        """
        chosen = sorted(self.scores) if draws is None else draws
        rows = []
        for fold in sorted({fold for fold, _ in chosen}):
            of_fold = [self.scores[draw][metric] for draw in chosen if draw[0] == fold]
            rows += [nan_mean([scores[case] for scores in of_fold], axis=0) for case in sorted(of_fold[0])]
        return np.array(rows)


def read_cells(folder: Path, order: Sequence[str]) -> tuple[list[Record], list[Record]]:
    """Read the finished cells ``folder/<model>/fold<n>_seed<n>``.

    Returns:
        The records of the cells; the scores per model, fold, seed, case and class.

    Raises:
        SystemExit: There is none, or those of a fold hold out different cases.
    """
    records, rows, folds = list[Record](), list[Record](), dict[int, dict[str, list[dict[str, str]]]]()
    for name in order:
        for file in sorted((folder / name).glob(f"fold*_seed*/{FINISHED}")):
            fold, seed = map(int, re.findall(r"\d+", file.parent.name))
            log = read_metrics(file.parent / "metrics.jsonl")
            curve = [[row["step"], row["elapsed_s"], row["val_dice"]] for row in log if "val_dice" in row]
            origin = {"model": name, "fold": fold, "seed": seed}
            records.append({**json.loads(file.read_text(encoding="utf-8")), **origin, "curve": curve})
            folds.setdefault(fold, {})[str(file.parent)] = scores = read_cases(file.parent)
            rows += [{key: {**row, **origin}[key] for key in COLUMNS} for row in scores]
    for cells in folds.values():
        check_pairs(cells)
    if not records:
        raise SystemExit(f"no finished cell of {', '.join(order)} in {folder}")
    return records, rows


def models_of(records: Sequence[Record], rows: Sequence[Record]) -> list[Model]:
    """Return the models, from records and scores as they are written to JSON and CSV."""
    models = []
    for name in dict.fromkeys(record["model"] for record in records):
        runs = [record for record in records if record["model"] == name]
        scores: dict[Draw, dict[str, dict[str, Array]]] = {}
        for run in runs:
            draw = (run["fold"], run["seed"])
            own = [row for row in rows if (row["model"], int(row["fold"]), int(row["seed"])) == (name, *draw)]
            scores[draw] = {metric: by_case(own, metric) for metric in METRICS}
        models.append(Model(name, runs, scores))
    return models


def by_case(rows: Sequence[Record], metric: str) -> dict[str, Array]:
    """Return case -> scores of the classes, in the order of the rows."""
    cases: dict[str, list[float]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(float(row[metric]) if row[metric] != "" else np.nan)
    return {case: np.array(values) for case, values in cases.items()}


def difference(model: Model, reference: Model, metric: str) -> Array:
    """Return a model's scores minus those of the reference (cases, classes), over folds and seeds that both have."""
    shared = sorted(model.scores.keys() & reference.scores.keys())
    if not shared:
        return np.full((0, 1), np.nan)
    return np.asarray(model.values(metric, shared) - reference.values(metric, shared))
