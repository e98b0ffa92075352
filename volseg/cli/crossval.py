"""Train all folds of a data set, score every case by the fold that held it out, and make an ensemble of the folds."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from volseg.api import crossval
from volseg.cli.default_config import CONFIG_HELP, default_config
from volseg.cli.progress import progress_bars
from volseg.cli.scores import print_scores
from volseg.cli.signals import exit_after, stops_in_order
from volseg.errors import ConfigError, counted
from volseg.heap import reuse_freed_memory
from volseg.inference.cohort.shard import torchrun_rank

if TYPE_CHECKING:
    from volseg.parallel import StageProgress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "The same command continues: finished folds are kept, interrupted ones resume."
    parser.add_argument("--config", metavar="NAME", help=CONFIG_HELP)
    parser.add_argument("--folds", metavar="N,N", help="these folds only, for example 0,1 (default: all)")
    parser.add_argument(
        "--jobs",
        action="store_true",
        help="make the plan, then print a command for each fold and the one that collects, and train nothing",
    )
    parser.add_argument("--collect", action="store_true", help="train nothing: score and join folds that are finished")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings as for volseg train, for example output=runs/cv"
    )


def run(args: argparse.Namespace) -> int:
    """Train and collect; the exit code is that of the scores of all held-out cases.

    Raises:
        VolsegError: Nothing can be trained or collected, or a fold cannot be trained.
        SystemExit: Ctrl-C (130) or SIGTERM (143); the checkpoint of the last finished step is written.
    """
    rank = torchrun_rank(os.environ)
    if rank is not None and rank.shard[1] > 1:
        hint = "volseg crossval --jobs prints a command for each fold"
        raise ConfigError("volseg crossval is one process", found=f"RANK={rank.shard[0]} of torchrun", hint=hint)
    if args.jobs and args.collect:
        raise ConfigError("--jobs and --collect exclude each other", hint="the last line of --jobs collects")
    folds = _numbers(args.folds)
    reuse_freed_memory()
    if args.config is None:
        args.config = default_config(args.overrides)
    command = shlex.join(["volseg", "crossval", *_arguments(args)])
    try:
        with stops_in_order(f"continue with: {command}"), progress_bars() as progress:
            if args.jobs:
                print("\n".join(_jobs(args, folds, progress)))
                return 0
            result = crossval(args.config, args.overrides, folds=folds, collect=args.collect, progress=progress)
    except (KeyboardInterrupt, SystemExit) as stop:
        raise exit_after(stop) from None
    print_scores(result.scores)
    print(f"\n{result.fold_table}\n")
    for case in result.failed:
        print(f"not predicted, not scored: {case}", file=sys.stderr)
    print(f"ensemble of {counted(len(result.folds), 'fold')}: {result.folder}")
    return result.exit_code


def _jobs(args: argparse.Namespace, folds: Sequence[int] | None, progress: StageProgress | None) -> list[str]:
    """Set up the folder, and return a command for each fold and the one that collects, as text for a shell."""
    from volseg.config.load import load_config

    config = load_config(args.config, args.overrides)

    from volseg.crossvalidation.setup import prepare_folds, write_fold_configs

    with prepare_folds(config, folds, progress) as prepared:
        write_fold_configs(prepared.folds)
        config_file = str(prepared.folder / "config.yaml")
        selection = [] if args.folds is None else ["--folds", args.folds]
        commands = [["train", "--resume", str(fold.folder)] for fold in prepared.folds]
        commands.append(["crossval", "--config", config_file, *selection, "--collect"])
        return [shlex.join(["volseg", *command]) for command in commands]


def _numbers(text: str | None) -> list[int] | None:
    """Return the numbers of ``0,1,2``.

    Raises:
        ConfigError: A part is no number.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError("--folds are not numbers", found=text, expected="for example 0,1,2") from error


def _arguments(args: argparse.Namespace) -> list[str]:
    """Return the arguments of this command."""
    flags = [f"--{name}" for name in ("jobs", "collect") if getattr(args, name)]
    selection = [] if args.folds is None else ["--folds", args.folds]
    return ["--config", args.config, *args.overrides, *selection, *flags]
