"""Draw slices of scans, and the principal components of their frozen patch tokens as colours."""

from __future__ import annotations

import argparse

from volseg.api import features
from volseg.cli.progress import progress_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_source(parser)
    parser.add_argument("-o", "--output", required=True, help="folder of the pictures SCAN.png and of features.json")
    parser.add_argument("--slices", type=int, default=6, help="most slices of a scan, evenly spaced (default: 6)")
    parser.add_argument(
        "--fit",
        default="all",
        choices=("all", "scan"),
        help="fit the components to the slices of all scans, or of each scan alone (default: all)",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Declare scans and encoder."""
    parser.add_argument(
        *("-i", "--input"), required=True, help="a scan, a folder of scans, or a .txt that lists one scan a line"
    )
    parser.add_argument("-m", "--model", help="model.safetensors or run folder, whose preprocessing is used too")
    parser.add_argument("--config", metavar="NAME", help="instead of a model: configuration with the encoder")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of the encoder, for example model.encoder=dinov2_b14 model.weights=official; with --model, "
        "device and seed alone",
    )


def run(args: argparse.Namespace) -> int:
    """Draw, and print where the pictures are.

    Raises:
        VolsegError: Nothing can be drawn.
    """
    with progress_bars() as progress:
        files = features(
            args.input,
            args.output,
            model=args.model,
            config=args.config,
            overrides=args.overrides,
            slices=args.slices,
            fit=args.fit,
            progress=progress,
        )
    print(f"{len(files) - 1} pictures; see {files[-1].parent}")
    return 0
