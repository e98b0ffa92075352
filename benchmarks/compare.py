"""Train and score several networks on one data set: same data path, split, augmentation, loss, time and evaluation.

    python benchmarks/compare.py --data DIR --models volseg,identity,dynunet --budget-minutes 10

Every cell is one ``tools/train.py`` run in its own process; they run one after another. A finished cell is kept, an
interrupted one goes on from its checkpoint, so the command may be stopped and given again. Several commands may train
different models at once, each on its own cores (``taskset``); the last one, with all models, writes the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cells import ROOT, read_cases, train_cell, write_csv
from record import table, without_place

from volseg.io.datasets import read_dataset

MODELS = {
    "volseg": [],
    "identity": ["model.encoder=identity"],
    "dynunet": ["model.baseline=dynunet"],
}
"""What each model changes in the configuration; everything else is the same for all."""


def main() -> int:
    """Run the cells that are not there yet and write the table."""
    args = parse_arguments()
    name = read_dataset(args.data).name
    runs = args.runs / f"{name}_{args.budget_minutes:g}min_fold{args.fold}_seed{args.seed}"
    shared = [f"data.root={args.data}", f"data.fold={args.fold}", f"seed={args.seed}"]
    shared += [f"data.cache={args.runs / 'preprocessed'}", f"train.max_minutes={args.budget_minutes}"]
    cells = [train_cell(runs / model, model, args.config, [*shared, *MODELS[model]]) for model in args.models]
    stem = args.out / f"compare_{runs.name}"
    args.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(markdown(name, cells, args), encoding="utf-8")
    command = [without_place(argument) for argument in sys.argv]
    stem.with_suffix(".json").write_text(json.dumps({"command": command, "cells": cells}, indent=1) + "\n")
    rows = [{"model": model, **row} for model in args.models for row in read_cases(runs / model)]
    write_csv(stem.with_suffix(".csv"), rows)
    print(stem.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--budget-minutes", type=float, required=True, help="training time of each model")
    parser.add_argument("--config", default=ROOT / "configs" / "hippocampus.yaml", help="settings shared by all")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="tables (%(default)s)")
    args = parser.parse_args()
    unknown = sorted(set(args.models) - set(MODELS))
    if unknown:
        parser.error(f"unknown models: {', '.join(unknown)}; there are {', '.join(MODELS)}")
    return args


def markdown(name: str, cells: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The table."""
    classes = list(cells[0]["scores"])
    head = ["model", *(f"Dice {c}" for c in classes), *(f"HD95 {c}" for c in classes)]
    head += ["parameters", "steps", "s in all", "peak MB"]
    rows = [head]
    for cell in cells:
        scores = cell["scores"]
        row = [cell["model"], *(f"{scores[c]['dice']:.4f}" for c in classes)]
        row += [f"{scores[c]['hd95']:.2f}" for c in classes]
        row += [
            f"{cell['parameters']:,}",
            str(cell["steps"]),
            f"{cell['wall_seconds']:.0f}",
            f"{cell['peak_memory_mb']}",
        ]
        rows.append(row)
    machine = cells[0]["hardware"]
    return (
        f"# {name}: {args.budget_minutes:g} minutes a model\n\n{table(rows)}\n\n"
        f"Held-out fold {args.fold} (a fifth, by case), seed {args.seed}, all from random initialisation, each on "
        f"{machine['threads']} threads of {machine['cpu']}, {cells[0]['precision']}. Dice and HD95 (mm, larger of "
        "the two directed 95th percentiles between voxel borders): means over cases in the scans' own geometry. "
        "`s in all`: start-up, preprocessing where it was not cached, training, prediction and scoring.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
