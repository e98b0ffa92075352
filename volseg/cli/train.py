"""Train a model on a data set, then predict and score the held-out cases."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from volseg.api import train
from volseg.cli.default_config import CONFIG_HELP, default_config
from volseg.cli.progress import progress_bars
from volseg.cli.scores import print_scores
from volseg.cli.signals import exit_after, stops_in_order
from volseg.errors import VolsegError
from volseg.heap import reuse_freed_memory
from volseg.inference.cohort.shard import torchrun_rank

if TYPE_CHECKING:
    from volseg.parallel import StageProgress

Result = TypeVar("Result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "All settings, their defaults and meanings: volseg settings [WORD]"
    example = "data.root=DIR output=runs/x train.max_minutes=30 plan.token_stride=4"
    add_run_arguments(parser, config=CONFIG_HELP, example=example)


def add_run_arguments(parser: argparse.ArgumentParser, *, config: str, example: str) -> None:
    """Declare configuration, settings and ``--resume`` of a command that trains.

    Args:
        parser: The parser.
        config: Help of ``--config``.
        example: Settings, as an example.
    """
    parser.add_argument("--config", metavar="NAME", help=config)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="RUN",
        help="continue the run in this folder, or in output=; settings that are not given are those of the run",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings, for example {example}")


def run(args: argparse.Namespace) -> int:
    """Train; the exit code is that of the scores of the held-out cases. Of several processes, the first speaks.

    Raises:
        VolsegError: The run cannot start or go on.
        SystemExit: Ctrl-C (130) or SIGTERM (143); the checkpoint of the last finished step is written.
    """
    take_apart(args)
    if args.config is None and not args.resume:
        args.config = default_config(args.overrides)
    result = in_order(
        args, "train", lambda progress: train(args.config, args.overrides, resume=args.resume, progress=progress)
    )
    if result.scores is not None:
        print_scores(result.scores)
    for case in result.failed:
        print(f"not predicted, not scored: {case}", file=sys.stderr)
    if is_first_process():
        print(f"model: {result.model_file}")
    return result.exit_code


def take_apart(args: argparse.Namespace) -> None:
    """Take a setting that follows ``--resume`` for what it is, and not for a run folder."""
    if isinstance(args.resume, str) and "=" in args.resume and not Path(args.resume).is_dir():
        args.overrides, args.resume = [args.resume, *args.overrides], True


def is_first_process() -> bool:
    """Return whether this is the process of ``torchrun`` that speaks, or the only one."""
    rank = torchrun_rank(os.environ)
    return rank is None or rank.shard[0] == 0


def in_order(args: argparse.Namespace, command: str, work: Callable[[StageProgress | None], Result]) -> Result:
    """Do the work of a command that trains: with progress bars, an orderly end, and how to continue after it.

    Args:
        args: Its arguments.
        command: Its name.
        work: Called with the progress.

    Raises:
        VolsegError: The run cannot start or go on.
        SystemExit: Ctrl-C (130) or SIGTERM (143); the checkpoint of the last finished step is written.
    """
    rank, is_first = torchrun_rank(os.environ), is_first_process()
    reuse_freed_memory()
    if not is_first:
        logging.getLogger().setLevel(logging.WARNING)
    processes = None if rank is None else os.environ.get("LOCAL_WORLD_SIZE")

    def advice() -> str:
        return f"continue with: {resuming_command(args, processes, command)}"

    try:
        with stops_in_order(advice if is_first else None), progress_bars(enabled=is_first) as progress:
            return work(progress)
    except (KeyboardInterrupt, SystemExit) as stop:
        raise exit_after(stop) from None
    except VolsegError:
        if rank is not None:  # torchrun stops the others as soon as one has ended, but the exit code is decided
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise


def resuming_command(args: argparse.Namespace, processes: str | None = None, command: str = "train") -> str:
    """Return the command that continues a run, as text for a shell; with the processes of this machine, if several.

    A run that has a checkpoint needs its folder alone. Before, it starts again with the settings given.
    """
    from volseg.config.load import output_folder

    program = ["volseg"] if processes is None else ["torchrun", "--nproc_per_node", processes, "-m", "volseg"]
    given = [args.resume] if isinstance(args.resume, str) else []
    run = given[0] if given else output_folder(args.config, args.overrides)
    if not any(Path(run).glob("checkpoint/*.pt")):
        config = [] if args.config is None else ["--config", args.config]
        return shlex.join([*program, command, *config, *args.overrides, "--resume", *given])
    changed = [text for text in args.overrides if args.resume and not text.startswith("output=")]
    return shlex.join([*program, command, *changed, "--resume", run])
