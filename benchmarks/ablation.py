"""What each part of the network gives: one factor at a time from the configuration, at equal minutes or equal steps.

    python benchmarks/ablation.py --data DIR --minutes 10                       # all cells, one after another
    python benchmarks/ablation.py --data DIR --steps 250
    python benchmarks/ablation.py --data DIR --minutes 10 --cells default,identity --seeds 1
    python benchmarks/ablation.py --data DIR --minutes 10 --cells default,identity --label few data.shots=8

Every cell is one ``tools/train.py`` run in its own process, with the same split, seed and time or steps. A finished
cell is kept, an interrupted one goes on from its checkpoint, so the command may be stopped and given again; tables take
all cells that are there, of both budgets and all seeds. Held out is fold 1: settings may follow what is seen here, and
claims are made on fold 0. Several commands may run at once, each on its own cores (``taskset``) and with ``--threads``.

Writes ``ablation_<data set>[_<label>]`` ``.md``, ``.json``, ``.csv`` (per case) to ``results/``, and a ``.png`` where
there are three cells or more.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ablation_tables import write_tables
from cells import ROOT, train_cell
from record import say

from volseg.io.datasets import read_dataset

CELLS = {
    "default": [],
    "encoder identity": ["model.encoder=identity"],
    "encoder ViT-S": ["model.encoder=dinov2_s14"],
    "aggregator none": ["model.aggregator=none"],
    "aggregator conv": ["model.aggregator=conv"],
    "1 slice": ["model.adjacent_slices=1"],
    "token stride 4": ["plan.token_stride=4"],
    "no stem": ["model.stem=false"],
}
"""What each cell changes in the configuration."""
NO_VALIDATION = "train.validate_every=1000000000"
"""Whole-volume validation on the way would take time from the steps."""


def main() -> int:
    """Train the cells that are not there yet, and write the tables after each."""
    args = parse_arguments()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    name = "_".join(filter(None, (read_dataset(args.data).name, args.label)))
    runs = args.runs / name
    budget, budget_name = ["train.max_minutes=null", f"train.max_steps={args.steps}"], f"{args.steps} steps"
    if args.minutes:
        budget = [f"train.max_minutes={args.minutes:g}", "train.max_steps=null"]
        budget_name = f"{args.minutes:g} minutes"
    shared = [f"data.root={args.data}", f"data.cache={args.runs / 'preprocessed'}", f"data.fold={args.fold}", *budget]
    for seed in args.seeds:
        for key in args.cells:
            say(f"{name}, {budget_name}, seed {seed}: {key}")
            settings = [*shared, NO_VALIDATION, f"seed={seed}", *args.settings, *CELLS[key]]
            train_cell(runs / budget_name / key.replace(" ", "_") / f"seed{seed}", key, args.config, settings)
            text = write_tables(runs, args.out / f"ablation_{name}", list(CELLS))
    print(text)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set folder")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="training time of each cell")
    budget.add_argument("--steps", type=int, help="steps of each cell")
    parser.add_argument("--cells", type=lambda text: text.split(","), default=list(CELLS), help=", ".join(CELLS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--fold", type=int, default=1, help="held out (%(default)s)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "hippocampus.yaml", help="what is varied")
    parser.add_argument("--label", help="name of the setting that the further arguments make")
    parser.add_argument("--threads", type=int, help="of each run (as many as there are cores)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="run folders (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="tables (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of all cells; they need a --label")
    args = parser.parse_args()
    if unknown := sorted(set(args.cells) - set(CELLS)):
        parser.error(f"no such cells: {', '.join(unknown)}; there are {', '.join(CELLS)}")
    if args.settings and not args.label:
        parser.error("settings make other runs than the configuration's own: name them with --label")
    return args


if __name__ == "__main__":
    sys.exit(main())
