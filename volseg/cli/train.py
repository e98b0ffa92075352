"""Train a model on a data set, then predict and score the held-out cases."""

from __future__ import annotations

import argparse

from volseg.api import train
from volseg.cli.heap import reuse_freed_memory
from volseg.cli.progress import progress_bars
from volseg.cli.scores import print_scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "All settings, their defaults and meanings: volseg settings [WORD]"
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, for example configs/default.yaml")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings, for example data.root=DIR output=runs/x train.max_minutes=30 plan.token_stride=4",
    )


def run(args: argparse.Namespace) -> int:
    """Train; the exit code is that of the scores of the held-out cases."""
    reuse_freed_memory()
    with progress_bars() as progress:
        result = train(args.config, args.overrides, resume=args.resume, progress=progress)
    code = print_scores(result.scores)
    print(f"model: {result.model_file}")
    return code
