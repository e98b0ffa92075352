"""Write a data set in any layout as nnU-Net v2 raw: one .nii.gz per channel, consecutive label values, dataset.json."""

from __future__ import annotations

import argparse

from volseg.api import convert
from volseg.cli.progress import progress_bars
from volseg.errors import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", metavar="DATASET", help="data set folder, or a CSV of cases")
    parser.add_argument("out", metavar="OUT", help="folder to write, such as nnUNet_raw/Dataset001_Name")
    parser.add_argument(
        "--resample-channels", action="store_true", help="resample channels on other grids to that of the first"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Convert; an error reports all invalid cases."""
    with progress_bars() as progress:
        written = convert(
            args.dataset,
            args.out,
            resample_channels=args.resample_channels,
            workers=args.workers,
            progress=progress,
        )
    print(f"{counted(len(written.cases), 'case')} with and {len(written.unlabelled)} without labels in {args.out}")
    return 0
