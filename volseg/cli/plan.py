"""Look at a data set: check every case and write the plan that training would use."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", metavar="DATASET", help="data set folder")
    parser.add_argument("--out", default="plan.json", metavar="FILE", help="where to write the plan (%(default)s)")
    parser.add_argument("--check-only", action="store_true", help="check the cases, write nothing")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read cases (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="plan.key=value", help="for example plan.token_stride=4")


def run(args: argparse.Namespace) -> int:
    """Plan; 0, or an error that lists all bad cases."""
    from volseg.config.load import load_config

    overrides = load_config(None, args.overrides).plan

    from volseg.cli.progress import progress_bar
    from volseg.io.datasets import read_dataset
    from volseg.io.json_files import to_json
    from volseg.planning.fingerprint import fingerprint
    from volseg.planning.plan import make_plan

    dataset = read_dataset(args.dataset)
    with progress_bar("fingerprint") as progress:
        measured = fingerprint(dataset, progress, workers=args.workers)
    plan = make_plan(measured, overrides)
    print(to_json(plan.to_dict()))
    if not args.check_only:
        plan.save(args.out)
    return 0
