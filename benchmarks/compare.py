"""Train and score several networks on one data set, all with the same split, augmentation, loss, budget and evaluation.

    python benchmarks/compare.py --data DIR --models volseg,identity,dynunet --budget-minutes 10
    python benchmarks/compare.py --data DIR --budget-steps 1000 --folds 0,1 --seeds 0,1,2 device=cuda
    python benchmarks/compare.py --data DIR --budget-minutes 5 --models volseg,identity,dynunet,nnunet

A cell is one network with one fold and one seed: a ``tools/train.py`` run in its own process. A finished one is kept
and an interrupted one resumes from its checkpoint, so the command can be stopped and repeated. Several commands may
train different cells at once, each on its own cores (``taskset``) or GPU; the tables hold all finished cells of the
models, and ``--tables`` writes them without training. A cell of other settings, cases or split is refused.
nnU-Net itself is trained by ``nnunet.py``, whose cells this command only reads.

DynUNet has the topology and the widths that nnU-Net plans, with our optimizer and with nnU-Net's (``dynunet_sgd``).

Writes ``<budget>`` ``.md``, ``.json``, ``.csv`` (per case) and ``.png`` (Dice against minutes and steps) to
``results/<data set>/``.
"""

from __future__ import annotations

import argparse
import os
import sys

from shared.arguments import add_runs, check_choices, integers, make_parser, words
from shared.record import RESULTS
from shared.text import say
from training.compare_tables import write_tables
from training.comparison import MODELS
from training.runs import finished_run, folder_name
from volseg.io.datasets import read_dataset

READ_ONLY = ("nnunet",)


def main() -> int:
    """Train the cells that are not finished, and write the tables at the end."""
    args = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    name = folder_name(read_dataset(args.data))
    folder = args.out / name.lower() if args.out == RESULTS else args.out
    shared = [f"data.root={args.data}", f"data.cache={args.runs / 'preprocessed'}", *args.settings]
    if args.budget_minutes:
        budget = f"{args.budget_minutes:g}min"
        shared += [f"train.max_minutes={args.budget_minutes:g}", "train.max_steps=null"]
    else:
        budget = f"{args.budget_steps}steps"
        shared += [f"train.max_steps={args.budget_steps}", "train.max_minutes=null"]
    runs = args.runs / name / budget
    for fold in args.folds:
        for seed in args.seeds:
            for model in [model for model in args.models if model in MODELS and not args.tables]:
                say(f"{name}, {budget}, fold {fold}, seed {seed}: {model}")
                settings = [*shared, f"data.fold={fold}", f"seed={seed}", *MODELS[model]]
                finished_run(runs / model / f"fold{fold}_seed{seed}", model, args.config, settings)
    print(write_tables(runs, folder / budget, args.models, reference=args.reference, title=name))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "<data set>")
    parser.set_defaults(out=RESULTS)
    parser.add_argument("--data", required=True, help="data set folder")
    choices = [*MODELS, *READ_ONLY]
    parser.add_argument("--models", type=words, default=["volseg", "identity", "dynunet"], help=", ".join(choices))
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--budget-minutes", type=float, help="training time of each cell")
    budget.add_argument("--budget-steps", type=int, help="steps of each cell")
    parser.add_argument("--folds", type=integers, default=[0], help="held out, one after another (0)")
    parser.add_argument("--seeds", type=integers, default=[0], help="(0)")
    parser.add_argument("--reference", help="model that the others are compared with (identity, or the first)")
    parser.add_argument("--tables", action="store_true", help="write the tables of the finished cells only")
    add_runs(parser, "compare")
    args = parser.parse_args()
    check_choices(parser, "--models", args.models, choices)
    if args.reference:
        check_choices(parser, "--reference", [args.reference], args.models)
    else:
        args.reference = "identity" if "identity" in args.models else args.models[0]
    return args


if __name__ == "__main__":
    sys.exit(main())
