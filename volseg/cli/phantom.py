"""Generate a small labelled CT data set in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="where to write the data set")
    parser.add_argument("--train", type=int, default=16, metavar="N", help="labelled training cases (%(default)s)")
    parser.add_argument("--test", type=int, default=4, metavar="N", help="held-out cases (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other bodies (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the data set."""
    from volseg.phantom import write_phantoms

    write_phantoms(args.folder, args.train, args.seed, count_test=args.test)
    print(f"{args.train} training and {args.test} held-out phantoms in {args.folder}")
    return 0
