"""Download a public data set by name, such as msd:Task04_Hippocampus (Medical Segmentation Decathlon)."""

from __future__ import annotations

import argparse

from volseg.api import download


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="msd:TASK; a wrong name lists all")
    parser.add_argument("folder", nargs="?", default=".", metavar="DIR", help="where to put it (default: here)")


def run(args: argparse.Namespace) -> int:
    """Download, check and extract."""
    print(download(args.name, args.folder))
    return 0
