"""Train and score several networks on one data set: same data path, split, augmentation, loss, time and evaluation.

    python benchmarks/compare.py --data DIR --models volseg,identity,dynunet --budget-minutes 10

Every cell is one ``tools/train.py`` run in its own process; they run one after another. A finished cell is kept, an
interrupted one goes on from its checkpoint, so the command may be stopped and given again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from volseg.io.datasets import read_dataset
from volseg.training.reproducibility import hardware

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "volseg": [],
    "identity": ["model.encoder=identity"],
    "dynunet": ["model.baseline=dynunet"],
}
"""What each model changes in the configuration; everything else is the same for all."""
METRICS = ("dice", "hd95")


def main() -> int:
    """Run the cells that are not there yet and write the table."""
    args = parse_arguments()
    name = read_dataset(args.data).name
    runs = args.runs / f"{name}_{args.budget_minutes:g}min_fold{args.fold}_seed{args.seed}"
    cells = []
    for model in args.models:
        cell_file = runs / model / "cell.json"
        if not cell_file.exists():
            record = run_cell(model, runs / model, args)
            cell_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        cells.append(json.loads(cell_file.read_text(encoding="utf-8")))
    stem = args.out / f"compare_{runs.name}"
    args.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(markdown(name, cells, args), encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps({"command": sys.argv, "cells": cells}, indent=1) + "\n")
    write_cases(stem.with_suffix(".csv"), runs, args.models)
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


def run_cell(model: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train one model in its own process, and read what it left."""
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(args.config), "--resume"]
    command += [f"data.root={args.data}", f"output={folder}", f"data.fold={args.fold}", f"seed={args.seed}"]
    command += [f"data.cache={args.runs / 'preprocessed'}", f"train.max_minutes={args.budget_minutes}", *MODELS[model]]
    print(f"{model}: {' '.join(command)}", file=sys.stderr)
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{model} failed; see above. The command can be given again.")
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "model": model,
        "command": command[1:],
        "date": provenance["created"],
        "commit": provenance["commit"],
        "versions": provenance["versions"],
        "hardware": hardware(),
        "seed": args.seed,
        "parameters": provenance["parameters"]["total"],
        "steps": rows[-1]["step"],
        "train_seconds": rows[-1]["elapsed_s"],
        "wall_seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1000),
        "scores": class_means(read_cases(folder)),
    }


def read_cases(folder: Path) -> list[dict[str, str]]:
    """Per-case scores of a run's held-out cases."""
    with (folder / "validation" / "scores" / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def class_means(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Class -> mean Dice and HD95 over the cases where they are defined, and the mean over classes."""
    scored = [row for row in rows if row["status"] != "failed"]
    means = {}
    for name in dict.fromkeys(row["class"] for row in scored):
        of_class = [row for row in scored if row["class"] == name]
        means[name] = {metric: mean_of(row[metric] for row in of_class) for metric in METRICS}
    return means | {"mean": {metric: mean_of(scores[metric] for scores in means.values()) for metric in METRICS}}


def mean_of(values: Iterable[str | float]) -> float:
    """Mean of what is defined; an empty cell is a score that is not."""
    defined = [float(value) for value in values if value != ""]
    return round(statistics.fmean(defined), 5) if defined else float("nan")


def write_cases(path: Path, runs: Path, models: list[str]) -> None:
    """All models' per-case scores in one file."""
    rows = [{"model": model, **row} for model in models for row in read_cases(runs / model)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown(name: str, cells: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The table."""
    classes = list(cells[0]["scores"])
    head = ["model", *(f"Dice {c}" for c in classes), *(f"HD95 {c}" for c in classes)]
    head += ["parameters", "steps", "s in all", "peak MB"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
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
        lines.append(f"| {' | '.join(row)} |")
    machine = cells[0]["hardware"]
    return (
        f"# {name}: {args.budget_minutes:g} minutes a model\n\n"
        + "\n".join(lines)
        + f"\n\nHeld-out fold {args.fold} (a fifth, by case), seed {args.seed}, all from random initialisation, "
        f"one after another on {machine['cpu']}, {machine['threads']} threads. Dice and HD95 (mm, larger of the two "
        "directed 95th percentiles between voxel borders): means over cases in the scans' own geometry. "
        "`s in all`: start-up, preprocessing where it was not cached, training, prediction and scoring.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
