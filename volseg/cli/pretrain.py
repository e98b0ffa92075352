"""Pretrain the slice encoder on scans without labels, with DINOv2's objective; its file is for model.weights."""

from __future__ import annotations

import argparse
import shlex

from volseg.api import pretrain
from volseg.cli.train import add_run_arguments, in_order, is_first_process, take_apart
from volseg.io.encoder_file import read_pretraining


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "All settings, their defaults and meanings: volseg settings pretrain"
    config = "pretrain (the default), pretrain_cpu, or the path of a YAML file"
    example = "data.root=FOLDER output=runs/pre model.weights=official train.max_minutes=60"
    add_run_arguments(parser, config=config, example=example)


def run(args: argparse.Namespace) -> int:
    """Pretrain; of several processes, the first speaks.

    Raises:
        VolsegError: The run cannot start or go on.
        SystemExit: Ctrl-C (130) or SIGTERM (143); the checkpoint of the last finished step is written.
    """
    take_apart(args)
    if args.config is None and not args.resume:
        args.config = "pretrain"
    file = in_order(
        args,
        "pretrain",
        lambda progress: pretrain(args.config, args.overrides, resume=args.resume, progress=progress),
    )
    if is_first_process():
        record = read_pretraining(file) or {}
        start = shlex.join([f"model.encoder={record.get('encoder')}", f"model.weights={file.parent}"])
        print(f"encoder: {file}")
        print(f"for volseg train, features and probe: {start}")
    return 0
