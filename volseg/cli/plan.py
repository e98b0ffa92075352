"""Check every case of a data set and write the plan that training uses."""

from __future__ import annotations

import argparse

from volseg.api import plan
from volseg.cli.progress import progress_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", metavar="DATASET", help="data set folder, or a CSV of cases")
    parser.add_argument("--out", default="plan.json", metavar="FILE", help="where to write the plan (%(default)s)")
    parser.add_argument("--check-only", action="store_true", help="check the cases, write nothing")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read cases (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="plan.key=value", help="for example plan.token_stride=4")


def run(args: argparse.Namespace) -> int:
    """Plan and print the plan; an error reports all invalid cases."""
    with progress_bars() as progress:
        out = None if args.check_only else args.out
        result = plan(args.dataset, args.overrides, out=out, workers=args.workers, progress=progress)

    from volseg.io.json_files import to_json

    print(to_json(result.to_dict()))
    return 0
