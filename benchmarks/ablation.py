"""Ablation: one part of the network at a time changed or left out, at equal minutes or equal steps.

    python benchmarks/ablation.py --data DIR --minutes 10                       # all cells, one after another
    python benchmarks/ablation.py --data DIR --steps 250
    python benchmarks/ablation.py --data DIR --minutes 10 --cells "default,encoder identity" --seeds 1
    python benchmarks/ablation.py --data DIR --minutes 10 --cells "default,encoder identity" --label few data.shots=8

Every cell is one ``tools/train.py`` run in its own process, with the same split, seed and time or steps. A finished run
is kept and an interrupted one resumes from its checkpoint, so the command can be stopped and repeated; the tables hold
all finished runs of all budgets and seeds. Fold 1 is held out: settings may be chosen on it, claims are made on fold 0.
Several commands may run at once, each on its own cores (``taskset``) and with ``--threads``.

Writes ``<data set>[_<label>]`` ``.md``, ``.json`` and ``.csv`` (per case), and ``.png`` with three cells or more.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import volseg
from shared.arguments import check_choices, integers, make_parser, words
from shared.record import TRANSFORMER_CONFIG
from shared.text import say
from training.ablation_tables import write_tables
from training.runs import NO_VALIDATION, finished_run, folder_name
from volseg.io.datasets import read_dataset

TO_TOKENS = "plan.decoder_strides"
"""Replaced by the plan's decoder levels without those below the token stride."""
CELLS = {
    "default": [],
    "encoder identity": ["model.encoder=identity"],
    "encoder ViT-S": ["model.encoder=dinov2_s14"],
    "aggregator none": ["model.aggregator=none"],
    "aggregator conv": ["model.aggregator=conv"],
    "1 slice": ["model.adjacent_slices=1"],
    "token stride 4": ["plan.token_stride=4"],
    "no stem": ["model.stem=false"],
    "without deeper levels": [TO_TOKENS],
    "identity without deeper levels": ["model.encoder=identity", TO_TOKENS],
    "identity lr 0.001": ["model.encoder=identity", "train.lr=0.001"],
    "identity lr 0.006": ["model.encoder=identity", "train.lr=0.006"],
    "identity 32 features": ["model.encoder=identity", "model.features=32"],
    "identity weight decay 0.1": ["model.encoder=identity", "train.weight_decay=0.1"],
    "identity foreground 0.33": ["model.encoder=identity", "train.foreground_fraction=0.33"],
    "identity affine 0.2": ["model.encoder=identity", "augment.affine=0.2"],
    "identity clip 12": ["model.encoder=identity", "train.clip_norm=12"],
}
"""Settings that each cell changes."""


def main() -> int:
    """Train the cells that have no finished run, and write the tables after each."""
    args = parse_arguments()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    name = "_".join(filter(None, (folder_name(read_dataset(args.data)), args.label)))
    runs = args.runs / name
    budget, budget_name = ["train.max_minutes=null", f"train.max_steps={args.steps}"], f"{args.steps} steps"
    if args.minutes:
        budget = [f"train.max_minutes={args.minutes:g}", "train.max_steps=null"]
        budget_name = f"{args.minutes:g} minutes"
    shared = [f"data.root={args.data}", f"data.cache={args.runs / 'preprocessed'}", f"data.fold={args.fold}", *budget]
    for seed in args.seeds:
        for key in args.cells:
            say(f"{name}, {budget_name}, seed {seed}: {key}")
            settings = [*shared, NO_VALIDATION, f"seed={seed}", *args.settings, *cell_settings(key, args)]
            finished_run(runs / budget_name / key.replace(" ", "_") / f"seed{seed}", key, args.config, settings)
            text = write_tables(runs, args.out / name.lower(), list(CELLS))
    print(text)
    return 0


def cell_settings(key: str, args: argparse.Namespace) -> list[str]:
    """Return the settings of a cell; those that follow the plan need the plan of the data set."""
    settings = [setting for setting in CELLS[key] if setting != TO_TOKENS]
    if len(settings) < len(CELLS[key]):
        plan = volseg.plan(args.data, [setting for setting in args.settings if setting.startswith("plan.")])
        levels = [list(stride) for stride in plan.decoder_strides if stride[1] <= plan.token_stride]
        settings += [f"plan.decoder_strides={levels}", f"plan.patch_size={list(plan.patch_size)}"]
    return settings


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "ablation")
    parser.add_argument("--data", required=True, help="data set folder")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="training time of each cell")
    budget.add_argument("--steps", type=int, help="steps of each cell")
    parser.add_argument("--cells", type=words, default=list(CELLS), help=", ".join(CELLS))
    parser.add_argument("--seeds", type=integers, default=[0])
    parser.add_argument("--fold", type=int, default=1, help="held out (%(default)s)")
    parser.add_argument(
        "--config", type=Path, default=TRANSFORMER_CONFIG, help="settings of the default cell (%(default)s)"
    )
    parser.add_argument("--label", help="name for runs with further settings")
    parser.add_argument("--threads", type=int, help="of each run (all cores)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="run folders (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of all cells; they need a --label")
    args = parser.parse_args()
    check_choices(parser, "--cells", args.cells, CELLS)
    if args.settings and not args.label:
        parser.error("runs with further settings need a name: --label")
    return args


if __name__ == "__main__":
    sys.exit(main())
