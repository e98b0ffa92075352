"""Few-shot curve: Dice against the number of training cases, with the transformer and without it, at equal steps.

    python benchmarks/few_shot.py --data DIR --steps 100
    python benchmarks/few_shot.py --data DIR --steps 1000 --seeds 0,1,2 --shots 1,5,10%,25%,100% device=cuda

Both arms of a pair train on the same cases: the seed chooses them, and the initial weights. The held-out cases are the
same for all runs. Every run is one ``tools/train.py`` in its own process; a finished run is kept and an interrupted one
resumes, so the command can be stopped and repeated.

Writes ``<data set>_<steps>_steps`` ``.md``, ``.json``, ``.csv`` (per case) and ``.png``.
"""

from __future__ import annotations

import argparse
import os
import sys

from shared.arguments import add_runs, integers, make_parser, words
from shared.text import say
from training.adaptation_grid import count_of
from training.few_shot_tables import Comparison, write_tables
from training.runs import finished_run, settings_of_steps
from volseg.config.schema import DataConfig
from volseg.data.split_rules import choose_split
from volseg.io.datasets import read_dataset

ARMS: dict[str, list[str]] = {"transformer": [], "identity": ["model.encoder=identity"]}
COMPARISON = Comparison("Random weights", "few_shot.py", [[*ARMS]])


def main() -> int:
    """Train the runs that are not finished, and write the tables after each pair."""
    args = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    dataset = read_dataset(args.data)
    available = len(choose_split(dataset, DataConfig(root=args.data, fold=args.fold), seed=0)["train"])
    name = f"{dataset.name.lower()}_{args.steps}_steps"
    settings = settings_of_steps(args)
    for seed in args.seeds:
        for count in [count_of(text, available) for text in args.shots]:
            for arm, changes in ARMS.items():
                say(f"{name}, seed {seed}, {count} cases: {arm}")
                folder = args.runs / name / f"{count} cases" / arm / f"seed{seed}"
                finished_run(folder, arm, args.config, [*settings, f"seed={seed}", f"data.shots={count}", *changes])
            text = write_tables(args.runs / name, args.out / name, list(ARMS), COMPARISON)
    print(text)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "few_shot")
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--steps", type=int, required=True, help="steps of each run")
    parser.add_argument("--shots", type=words, default=words("1,5,10%,25%,100%"), help="training cases (1,5,10%%,...)")
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2])
    parser.add_argument("--fold", type=int, default=0, help="held out (%(default)s)")
    add_runs(parser, "few_shot")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
