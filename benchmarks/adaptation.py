"""Adaptation of pretrained encoders: encoder x adaptation x training cases x seed, all at equal steps.

    python benchmarks/adaptation.py --data DIR --steps 2000 --encoders dinov2_s14:official,dinov2_s14:random --list
    python benchmarks/adaptation.py --data DIR --steps 2000 --encoders ... --cell 7      # one of these commands
    python benchmarks/adaptation.py --data DIR --steps 2000 --encoders ... --tables
    python benchmarks/adaptation.py --data DIR --steps 2 --encoders tiny:random          # all, one after another

The settings are those of the study of DINOv2 on radiology (Baharoon et al. 2023, arXiv 2312.02366): a frozen encoder
with a linear decoder or a U-Net per slice, and beside it volseg's decoder with the encoder frozen, adapted by LoRA or
BitFit, or trained in full. Every cell is an independent training run: ``--list`` prints a command for each, for a loop
or the array of a cluster's scheduler. A finished cell is kept and an interrupted one resumes. The seed chooses the
training cases and the initial weights; cells of one seed and number of cases have the same cases, and the held-out
cases are the same for all.

Dice is per case, averaged over cases and then over classes. Beside it stands the study's: all voxels of all slices
pooled. Writes ``<data set>_<steps>_steps`` ``.md``, ``.json``, ``.csv`` (per case) and ``.png``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from shared.arguments import add_runs, check_choices, integers, make_parser, words
from shared.record import write_json
from shared.text import say
from training.adaptation_grid import ADAPTATIONS, Encoder, Job, command_of, count_of, jobs_of
from training.adaptation_tables import write_tables
from training.pooled_dice import pooled_dice_of_run
from training.runs import FINISHED, finished_run, folder_name, settings_of_steps
from volseg.config.load import load_config
from volseg.data.split_rules import choose_split
from volseg.io.datasets import Dataset, read_dataset


def main() -> int:
    """List the cells, train one, or train all that are not finished; write the tables."""
    args = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    dataset = read_dataset(args.data)
    available = len(choose_split(dataset, load_config(args.config, settings_of_steps(args)).data, seed=0)["train"])
    shots = [count_of(text, available) for text in args.shots]
    jobs = jobs_of(args.encoders, args.adaptations, shots, args.seeds)
    name = f"{folder_name(dataset).lower()}_{args.steps}_steps"
    if args.cell is not None and not 0 <= args.cell < len(jobs):
        raise SystemExit(f"--cell {args.cell}: the cells are 0 to {len(jobs) - 1}")
    if len({job.folder(Path()) for job in jobs}) < len(jobs):
        raise SystemExit("--encoders: two of them have the same name; rename one of the weight files")
    if args.list:
        print("\n".join(command_of(sys.argv, number) for number in range(len(jobs))))
    elif args.cell is not None:
        train(jobs[args.cell], args.runs / name, dataset, args)
    else:
        for job in [] if args.tables else jobs:
            train(job, args.runs / name, dataset, args)
        print(write_tables(args.runs / name, args.out / name, list(dict.fromkeys(job.arm for job in jobs))))
    return 0


def train(job: Job, root: Path, dataset: Dataset, args: argparse.Namespace) -> None:
    """Train and score one cell, if it is not finished."""
    say(f"{root.name}, seed {job.seed}, {job.cases} cases: {job.arm}")
    folder = job.folder(root)
    record = finished_run(folder, job.arm, args.config, [*settings_of_steps(args), *job.settings])
    if "pooled_dice" not in record:
        write_json(folder / FINISHED, {**record, "pooled_dice": pooled_dice_of_run(folder, dataset)})


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "adaptation")
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--steps", type=int, required=True, help="steps of each cell")
    parser.add_argument(
        "--encoders", type=words, required=True, help="encoder:weights,... (official, random or a file)"
    )
    parser.add_argument("--adaptations", type=words, default=[*ADAPTATIONS], help=",".join(ADAPTATIONS))
    parser.add_argument("--shots", type=words, default=words("1,5,10%,25%,100%"), help="training cases (1,5,10%%,...)")
    parser.add_argument("--seeds", type=integers, default=[0, 1, 2])
    parser.add_argument("--fold", type=int, default=0, help="held out (%(default)s)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="print the command of each cell and end")
    action.add_argument("--cell", type=int, help="train this cell only, without tables")
    action.add_argument("--tables", action="store_true", help="write the tables of the finished cells only")
    add_runs(parser, "adaptation")
    args = parser.parse_args()
    check_choices(parser, "--adaptations", args.adaptations, ADAPTATIONS)
    try:
        args.encoders = [Encoder.parse(text) for text in args.encoders]
    except argparse.ArgumentTypeError as error:
        parser.error(f"--encoders {error}")
    return args


if __name__ == "__main__":
    sys.exit(main())
