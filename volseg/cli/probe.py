"""Classify scans or slices from frozen features, by nearest neighbours and logistic regression."""

from __future__ import annotations

import argparse

from volseg.api import probe
from volseg.cli.features import add_source
from volseg.cli.progress import progress_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_source(parser)
    parser.add_argument(
        "--labels",
        required=True,
        metavar="CSV",
        help="table with the columns case and label, and optionally slice, patient, and fold or split (train, test)",
    )
    parser.add_argument("-o", "--output", required=True, help="folder of probe.json, predictions.csv and probe.md")
    parser.add_argument(
        "--slices",
        type=int,
        default=32,
        help="most slices of a scan, evenly spaced (default: 32); where slices are labelled, these are used",
    )


def run(args: argparse.Namespace) -> int:
    """Classify, and print the table.

    Raises:
        VolsegError: Nothing can be classified.
    """
    with progress_bars() as progress:
        result = probe(
            args.input,
            args.labels,
            args.output,
            model=args.model,
            config=args.config,
            overrides=args.overrides,
            slices=args.slices,
            progress=progress,
        )
    print(result.table)
    return 0
