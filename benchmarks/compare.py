"""Train and score several networks on one data set, all with the same split, augmentation, loss, time and evaluation.

    python benchmarks/compare.py --data DIR --models volseg,identity,dynunet --budget-minutes 10

Every model is one ``tools/train.py`` run in its own process; they run one after another. A finished run is kept and an
interrupted one resumes from its checkpoint, so the command can be stopped and repeated. Several commands may train
different models at once, each on its own cores (``taskset``); the last one, with all models, writes the table.

Writes ``<minutes>min_fold<n>_seed<n>`` ``.md``, ``.json`` and ``.csv`` (per case) to ``results/<data set>/``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shared.arguments import check_choices, make_parser, words
from shared.record import CPU_CONFIG, RESULTS, Record, portable_argument, write_json, write_page
from shared.text import table
from training.runs import finished_run, machine_text, read_cases, write_csv
from volseg.io.datasets import read_dataset
from volseg.metrics.table import METRIC

MODELS = {
    "volseg": [],
    "identity": ["model.encoder=identity"],
    "dynunet": ["model.baseline=dynunet"],
}
"""Settings that each model changes; all others are the same for all."""


def main() -> int:
    """Train the models that have no finished run and write the table."""
    args = parse_arguments()
    name = read_dataset(args.data).name
    setup = f"{args.budget_minutes:g}min_fold{args.fold}_seed{args.seed}"
    runs = args.runs / f"{name}_{setup}"
    shared = [f"data.root={args.data}", f"data.fold={args.fold}", f"seed={args.seed}"]
    shared += [f"data.cache={args.runs / 'preprocessed'}", f"train.max_minutes={args.budget_minutes}"]
    cells = [finished_run(runs / model, model, args.config, [*shared, *MODELS[model]]) for model in args.models]
    folder = RESULTS / name.lower() if args.out == RESULTS else args.out
    command = [portable_argument(argument) for argument in sys.argv]
    record = {"dataset": name, "minutes": args.budget_minutes, "fold": args.fold, "command": command, "cells": cells}
    write_json(folder / f"{setup}.json", record)
    rows = [{"model": model, **row} for model in args.models for row in read_cases(runs / model)]
    write_csv(folder / f"{setup}.csv", rows)
    write_page(folder / f"{setup}.md", markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "<data set>")
    parser.set_defaults(out=RESULTS)
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--models", type=words, default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--budget-minutes", type=float, required=True, help="training time of each model")
    parser.add_argument("--config", type=Path, default=CPU_CONFIG, help="settings shared by all (%(default)s)")
    parser.add_argument("--fold", type=int, default=0, help="held out (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="run folders (%(default)s)")
    args = parser.parse_args()
    check_choices(parser, "--models", args.models, MODELS)
    return args


def markdown(record: Record) -> str:
    """Return the table: a row per model."""
    cells = record["cells"]
    classes = list(cells[0]["scores"])
    dice, hd95 = METRIC["dice"], METRIC["hd95"]
    rows = [["model", *(f"{dice.title} {c}" for c in classes), *(f"{hd95.column_title} {c}" for c in classes)]]
    rows[0] += ["parameters", "steps", "total s", "peak MB"]
    for cell in cells:
        scores = cell["scores"]
        row = [cell["model"], *(f"{scores[c]['dice']:.4f}" for c in classes)]
        row += [f"{scores[c]['hd95']:.{hd95.digits}f}" for c in classes]
        row += [f"{cell['parameters']:,}", str(cell["steps"]), f"{cell['wall_seconds']:.0f}"]
        rows.append([*row, str(cell["peak_memory_mb"])])
    dates = sorted({cell["date"][:10] for cell in cells})
    commits = sorted({str(cell["commit"])[:10] for cell in cells})
    return (
        f"# {record['dataset']}: {record['minutes']:g} minutes per model\n\n{table(rows)}\n\n"
        f"Held-out fold {record['fold']} (a fifth of the cases), seed {cells[0]['seed']}, random weights, each "
        f"on {machine_text(cells[0])}. Dice and HD95 (the larger of the two directed 95th percentiles between voxel "
        "borders): means over cases in the scans' own geometry. `total s`: start-up, preprocessing where it was not "
        "cached, training, prediction and scoring.\n\n"
        f"{' and '.join(dates)}, commit {', '.join(commits)}: `python {' '.join(record['command'])}`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
