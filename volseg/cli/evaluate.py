"""Score folders of masks against references, with intervals and paired tests."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from volseg.api import evaluate
from volseg.cli.progress import progress_bars
from volseg.cli.scores import print_scores
from volseg.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--pred", action="append", required=True, metavar="[NAME=]DIR", help="folder of predictions; repeat to compare"
    )
    parser.add_argument("--ref", help="folder of reference masks (default: the labels that --dataset lists)")
    parser.add_argument("--out", required=True, help="folder of the tables and the report")
    parser.add_argument(
        "--dataset",
        help="dataset.json with the classes and, if listed, the pairs (default: the values in the references)",
    )
    parser.add_argument("--cases", metavar="FILE", help="score these only: one name per line, or a run's splits.json")
    parser.add_argument("--images", help="folder of the scans, for the report's pictures (default: as in --dataset)")
    parser.add_argument("--hd-mode", default="max", choices=("max", "pooled", "surfel"), help="definition of HD95")
    parser.add_argument(
        "--nsd-tolerance",
        action="append",
        default=[],
        metavar="[CLASS=]MM",
        help="tolerance of NSD in mm, for all classes or for one (default: 1)",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that score cases (default: 0, this one)")
    parser.add_argument("--no-report", action="store_true", help="tables only, no report.html")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables and return their exit code."""
    tolerance_mm, class_tolerance_mm = _tolerances(args.nsd_tolerance)
    with progress_bars() as progress:
        result = evaluate(
            _methods(args.pred),
            args.ref,
            args.out,
            dataset=args.dataset,
            images=args.images,
            cases=args.cases,
            hd_mode=args.hd_mode,
            nsd_tolerance_mm=tolerance_mm,
            class_tolerance_mm=class_tolerance_mm,
            workers=args.workers,
            report=not args.no_report,
            progress=progress,
        )
    return print_scores(result)


def _methods(given: Sequence[str]) -> dict[str, str | Path]:
    """Return method name -> folder; the default name is that of the folder."""
    methods: dict[str, str | Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        named = bool(equals) and "/" not in name and not Path(text).is_dir()  # a folder may be called lr=0.1
        path = Path(folder if named else text)
        name = name if named else path.resolve().name
        if not name or name in methods:
            raise ConfigError(
                "two --pred have the same name", found=text, expected="name=DIR", hint="write --pred name=DIR"
            )
        methods[name] = path
    return methods


def _tolerances(given: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Return the tolerance of all classes and those of single classes, mm."""
    general_mm, class_mm = 1.0, {}
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise ConfigError("--nsd-tolerance is not a number", found=text, expected="MM or CLASS=MM") from error
        if equals:
            class_mm[name] = value
        else:
            general_mm = value
    return general_mm, class_mm
