"""Score folders of masks against references, with intervals and paired tests."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volseg.cli.progress import progress_bar
from volseg.errors import ConfigError

if TYPE_CHECKING:
    from volseg.evaluation.results import Evaluation
    from volseg.io.description import ListedPair
    from volseg.io.labels import LabelMap
    from volseg.metrics.pair import HdMode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--pred", action="append", required=True, metavar="[NAME=]DIR", help="folder of predictions; repeat to compare"
    )
    parser.add_argument("--ref", help="folder of reference masks (default: the labels that --dataset lists)")
    parser.add_argument("--out", required=True, help="folder of the tables and the report")
    parser.add_argument("--dataset", help="dataset.json with the labels (default: the values found in the references)")
    parser.add_argument("--cases", metavar="FILE", help="score these only: names, one a line, or a run's splits.json")
    parser.add_argument("--images", help="folder of the scans, for the report's pictures (default: as in --dataset)")
    parser.add_argument("--hd-mode", default="max", choices=("max", "pooled", "surfel"), help="definition of HD95")
    parser.add_argument(
        "--nsd-tolerance",
        action="append",
        default=[],
        metavar="[CLASS=]MM",
        help="tolerance of NSD in mm, for all classes or for one (default: 1)",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that score cases (default: 0, none beside)")
    parser.add_argument("--no-report", action="store_true", help="tables only, no report.html")


def run(args: argparse.Namespace) -> int:
    """Evaluate; see :func:`evaluate` for the exit code."""
    from volseg.io.description import read_description, required_labels

    description = read_description(args.dataset) if args.dataset else None
    tolerance, class_tolerances = _tolerances(args.nsd_tolerance)
    return evaluate(
        _methods(args.pred),
        args.ref,
        args.out,
        label_map=required_labels(description) if description else None,
        pairs=description.pairs if description else (),
        dataset=args.dataset,
        images=args.images,
        hd_mode=args.hd_mode,
        nsd_tolerance_mm=tolerance,
        class_tolerance_mm=class_tolerances,
        cases=_case_names(args.cases) if args.cases else None,
        workers=args.workers,
        report=not args.no_report,
    )


def evaluate(
    pred: Mapping[str, str | Path],
    ref: str | Path | Mapping[str, Path] | None,
    out: str | Path,
    *,
    label_map: LabelMap | None = None,
    dataset: str | Path | None = None,
    images: str | Path | None = None,
    cases: Sequence[str] | None = None,
    pairs: Sequence[ListedPair] = (),
    hd_mode: HdMode = "max",
    nsd_tolerance_mm: float = 1.0,
    class_tolerance_mm: Mapping[str, float] | None = None,
    workers: int = 0,
    report: bool = True,
) -> int:
    """Score folders, write tables and report, print the table.

    Args:
        pred: Method name -> folder of predictions.
        ref: Folder of references, or case -> file; ``None`` takes the labels of ``pairs``.
        out: Folder of ``cases.csv``, ``summary.json``, ``summary.md``, ``report.html`` and its pictures.
        label_map: The classes; default: the values found in the references.
        dataset: A ``dataset.json`` that lists the scans, for the pictures.
        images: Folder of the scans, for the pictures.
        cases: Score these cases only.
        pairs: Images and labels that a ``dataset.json`` lists.
        hd_mode: Definition of HD95.
        nsd_tolerance_mm: Tolerance of NSD.
        class_tolerance_mm: Tolerances of single classes.
        workers: Processes that score cases.
        report: Write ``report.html``.

    Returns:
        0 when every case was predicted and scored, 1 when a prediction is missing or a case failed, 2 when all failed.
    """
    from volseg.evaluation.folder import evaluate_folder
    from volseg.evaluation.summary import summarize
    from volseg.report.tables import markdown_text, write_tables

    with progress_bar("evaluate") as progress:
        evaluation = evaluate_folder(
            pred,
            ref,
            label_map,
            hd_mode=hd_mode,
            nsd_tolerance_mm=nsd_tolerance_mm,
            class_tolerance_mm=class_tolerance_mm,
            cases=cases,
            pairs=pairs,
            workers=workers,
            progress=progress,
        )
    summary = summarize(evaluation)
    files = write_tables(evaluation, summary, out)
    if report:
        from volseg.report.examples import find_images
        from volseg.report.html import write_report

        files += write_report(
            out, evaluation, summary, find_images(images, dataset, None if isinstance(ref, Mapping) else ref)
        )
    print(markdown_text(summary))
    _print_problems(evaluation)
    print("written: " + ", ".join(str(file) for file in files), file=sys.stderr)
    if len(evaluation.failed) == len(evaluation.results):
        return 2
    return 1 if evaluation.failed or evaluation.missing else 0


def _print_problems(evaluation: Evaluation) -> None:
    for result in evaluation.failed:
        print(f"failed: {result.method} {result.case}: {result.error}", file=sys.stderr)
    for result in evaluation.missing:
        print(f"no prediction, scored as empty: {result.method} {result.case}", file=sys.stderr)


def _case_names(path: str) -> list[str]:
    """Names from a text file, one a line, or the held-out cases of a run's ``splits.json``."""
    from volseg.io.json_files import read_json

    try:
        if Path(path).suffix == ".json":
            names = read_json(path, "cases")["val"]
        else:
            names = Path(path).read_text(encoding="utf-8-sig").split("\n")
        return [name.strip() for name in names if name.strip()]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "--cases cannot be read",
            file=path,
            found=f"{type(error).__name__}: {error}",
            expected="one case name a line, or a run's splits.json",
        ) from error


def _methods(given: Sequence[str]) -> dict[str, str | Path]:
    """Method name -> folder; without a name the folder's own is taken."""
    methods: dict[str, str | Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        named = bool(equals) and "/" not in name and not Path(text).is_dir()  # a folder may be called lr=0.1
        path = Path(folder if named else text)
        name = name if named else path.resolve().name
        if not name or name in methods:
            raise ConfigError(
                "every --pred needs a name of its own", found=text, expected="name=DIR", hint="write --pred name=DIR"
            )
        methods[name] = path
    return methods


def _tolerances(given: Sequence[str]) -> tuple[float, dict[str, float]]:
    """The tolerance of all classes and those of single classes."""
    general, single = 1.0, {}
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise ConfigError("--nsd-tolerance is not a number", found=text, expected="MM or CLASS=MM") from error
        if equals:
            single[name] = value
        else:
            general = value
    return general, single
