"""Scoring masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volseg.api.arguments import PathLike, check_type
from volseg.api.results import EvaluationResult

if TYPE_CHECKING:
    from volseg.io.cases import GridRule
    from volseg.io.labels import LabelMap
    from volseg.metrics.pair import HdMode
    from volseg.parallel import StageProgress


def evaluate(
    pred: PathLike | Mapping[str, PathLike],
    ref: PathLike | Mapping[str, Path] | None = None,
    out: PathLike | None = None,
    *,
    dataset: PathLike | None = None,
    labels: Mapping[str, object] | LabelMap | None = None,
    images: PathLike | Mapping[str, Path] | None = None,
    cases: PathLike | Sequence[str] | None = None,
    hd_mode: HdMode = "max",
    nsd_tolerance_mm: float = 1.0,
    class_tolerance_mm: Mapping[str, float] | None = None,
    grids: GridRule | None = None,
    workers: int = 0,
    report: bool = True,
    progress: StageProgress | None = None,
) -> EvaluationResult:
    """Score masks against references, with intervals and paired tests between methods.

    Args:
        pred: Folder of predictions, or method name -> folder.
        ref: Folder of references, or case -> file; ``None`` takes the labels that ``dataset`` lists.
        out: Folder of ``cases.csv``, ``scores.json``, ``scores.md`` and ``report.html`` with its pictures; ``None``
            writes nothing.
        dataset: A ``dataset.json`` with the classes; the pairs of image and label that it lists are the truth.
        labels: Class name -> value or values, instead of those of ``dataset``. Without both: the values found in the
            references.
        images: Folder of the scans, or case -> file, for the pictures; default: as ``dataset`` lists them, or beside
            the references.
        cases: Score these cases only: names, or a file with one name per line or a run's ``splits.json``.
        hd_mode: Definition of HD95: ``max``, ``pooled`` or ``surfel``.
        nsd_tolerance_mm: Tolerance of NSD.
        class_tolerance_mm: Tolerances of single classes, by name.
        grids: When the grids of prediction and reference count as the same; default: within 0.01 mm.
        workers: Processes that score cases; 0 works in this one.
        report: Write ``report.html`` and its pictures.
        progress: Called with the stage ``evaluate`` and the number of finished and of all cases.

    Raises:
        ConfigError: ``cases`` cannot be read.
        DataError: A folder is missing or holds no masks, or label maps disagree.
        OutputError: A file cannot be written.
    """
    from volseg.evaluation.folder import evaluate_folder
    from volseg.evaluation.sources import read_case_names
    from volseg.evaluation.summary import summarize
    from volseg.io.atomic import remove_stale
    from volseg.io.description import read_description, required_labels
    from volseg.parallel import stage_progress
    from volseg.report.tables import check_inputs, markdown_text, write_tables

    check_type("pred", pred, str, Path, Mapping)
    check_type("ref", ref, str, Path, Mapping, type(None))
    check_type("out", out, str, Path, type(None))
    check_type("dataset", dataset, str, Path, type(None))
    if out is not None:
        check_inputs([path for path in (dataset, cases) if isinstance(path, str | Path)], out)
    description = read_description(dataset) if dataset is not None else None
    if labels is None and description is not None:
        labels = required_labels(description)
    evaluation = evaluate_folder(
        pred,
        ref,
        labels,
        hd_mode=hd_mode,
        nsd_tolerance_mm=nsd_tolerance_mm,
        class_tolerance_mm=class_tolerance_mm,
        cases=read_case_names(cases) if isinstance(cases, str | Path) else cases,
        pairs=(description.cases or ()) if description is not None else (),
        grids=grids,
        workers=workers,
        progress=stage_progress(progress, "evaluate"),
    )
    summary = summarize(evaluation)
    files: list[Path] = []
    if out is not None:
        files += write_tables(evaluation, summary, out)
        if report:
            from volseg.report.examples import find_images
            from volseg.report.html import write_report

            scans = find_images(images, description, None if isinstance(ref, Mapping) else ref)
            files += write_report(out, evaluation, summary, scans)
        remove_stale(Path(out))
    return EvaluationResult(evaluation=evaluation, summary=summary, table=markdown_text(summary), files=tuple(files))
