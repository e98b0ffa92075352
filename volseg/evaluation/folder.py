"""Scoring of folders of predictions against a folder of references."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from volseg.errors import DataError, suggestion
from volseg.evaluation.case import CaseTask, finished_case, score_case
from volseg.evaluation.results import CaseResult, Evaluation, Settings
from volseg.evaluation.sources import MaskFolder, find_masks, find_references
from volseg.io.cases import Case, GridRule
from volseg.io.description import read_label_map
from volseg.io.labels import LabelMap, check_agreement, make_label_map
from volseg.metrics.pair import HD_MODES, HdMode
from volseg.metrics.scores import check_tolerance
from volseg.metrics.table import both_empty_scores
from volseg.parallel import run_tasks

logger = logging.getLogger(__name__)

Folder = str | Path


def evaluate_folder(
    pred: Folder | Mapping[str, Folder],
    ref: Folder | Mapping[str, Path] | None,
    labels: LabelMap | Mapping[str, object] | None = None,
    *,
    hd_mode: HdMode = "max",
    nsd_tolerance_mm: float = 1.0,
    class_tolerance_mm: Mapping[str, float] | None = None,
    cases: Sequence[str] | None = None,
    pairs: Sequence[Case] = (),
    grids: GridRule | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every reference case against the prediction of the same name.

    Args:
        pred: Folder of predictions, whose name becomes the method's, or method name -> folder.
        ref: Folder of references, or case -> file; ``None`` uses the labels of ``pairs``.
        labels: Name -> value or values (several make a region); ``background`` and ``ignore`` have their usual meaning.
            Default: the values that occur in the references.
        hd_mode: Definition of HD95: ``max``, ``pooled`` or ``surfel``.
        nsd_tolerance_mm: Tolerance of NSD.
        class_tolerance_mm: Class name -> its own tolerance.
        cases: Score these reference cases only.
        pairs: Cases that a ``dataset.json`` lists; they take precedence over file names, see
            :func:`~volseg.evaluation.sources.find_references`.
        grids: When the grids of prediction and reference count as the same.
        workers: Number of processes; 0 uses the current process.
        progress: Called after each case with the numbers of finished and of all cases.

    Returns:
        The scores. Missing predictions are scored as empty masks. A case that fails does not stop the others.

    Raises:
        DataError: A folder is missing or has no masks, the label maps differ, or a tolerance is for an unknown class.
    """
    references = find_references(ref, pairs)
    pred_folders = pred if isinstance(pred, Mapping) else {Path(pred).resolve().name: pred}
    folders = {method: find_masks(folder) for method, folder in pred_folders.items()}
    names = _selected_cases(references, cases)
    if hd_mode not in HD_MODES:
        raise DataError("hd_mode has no such choice", found=hd_mode, expected=", ".join(HD_MODES))
    label_map = labels if isinstance(labels, LabelMap) or labels is None else make_label_map(labels)
    if label_map is None:
        label_map = _class_file_map(references)
    if label_map is not None:
        _check_tolerances(class_tolerance_mm or {}, label_map)
    extra_values = _check_predictions(folders, references, label_map)
    check_tolerance(nsd_tolerance_mm, "all classes")
    settings = Settings(hd_mode, nsd_tolerance_mm, dict(class_tolerance_mm or {}))
    tasks = [
        CaseTask(
            name,
            references.cases[name],
            {method: folder.cases.get(name) for method, folder in folders.items()},
            label_map,
            settings,
            extra_values,
            grids or GridRule(),
        )
        for name in names
    ]
    by_method_and_case = _run(tasks, workers, progress)
    results = [by_method_and_case[method, name] for method in folders for name in names]
    if label_map is None:
        label_map, results = _with_observed_labels(results)
        _check_tolerances(class_tolerance_mm or {}, label_map)
    return Evaluation(
        label_map,
        settings,
        tuple(folders),
        tuple(names),
        tuple(results),
        {method: _unmatched(folder, references) for method, folder in folders.items()},
    )


def _run(
    tasks: Sequence[CaseTask], workers: int, progress: Callable[[int, int], None] | None
) -> dict[tuple[str, str], CaseResult]:
    """Score all cases, log those that fail, and return (method, case) -> result."""
    results: dict[tuple[str, str], CaseResult] = {}
    outcomes = run_tasks(score_case, tasks, workers if len(tasks) > 1 else 0, pool_pays_s=0)
    for number, (index, outcome) in enumerate(outcomes, start=1):
        for result in finished_case(tasks[index], outcome):
            results[result.method, result.case] = result
            if result.error:
                logger.error("%s %s: %s", result.method, result.case, result.error)
        if progress is not None:
            progress(number, len(tasks))
    return results


def _selected_cases(references: MaskFolder, cases: Sequence[str] | None) -> list[str]:
    if not references.cases:
        raise DataError("the folder has no masks", file=references.root, expected="files such as case.nii.gz")
    if references.unknown:
        logger.warning("%s: not a mask, skipped: %s", references.root, ", ".join(references.unknown))
    if cases is None:
        return list(references.cases)
    if not cases:
        raise DataError("the list of cases is empty", found="no name", expected="names of references")
    unknown = sorted(set(cases) - set(references.cases))
    if unknown:
        hint = "correct the list of cases, or add their references"
        raise DataError("cases without a reference", file=references.root, found=", ".join(unknown), hint=hint)
    return sorted(set(cases))


def _check_tolerances(class_tolerance_mm: Mapping[str, float], label_map: LabelMap) -> None:
    """Check that the tolerances per class are valid and that the classes exist."""
    for name, tolerance_mm in class_tolerance_mm.items():
        check_tolerance(tolerance_mm, f"class {name!r}")
        if name not in label_map.classes:
            similar = suggestion(name, label_map.classes)
            raise DataError(
                "an NSD tolerance is set for a class that does not exist",
                found=name,
                expected=", ".join(label_map.classes),
                hint=f"did you mean {similar}?" if similar else None,
            )


def _class_file_map(references: MaskFolder) -> LabelMap | None:
    """Return the classes named by a reference folder with one file per class; ``None`` for label maps."""
    names = sorted({name for source in references.cases.values() for name in source.class_files})
    return make_label_map({name: number for number, name in enumerate(names, start=1)}) if names else None


def _check_predictions(
    folders: Mapping[str, MaskFolder], references: MaskFolder, label_map: LabelMap | None
) -> dict[str, frozenset[int]]:
    """Compare case names and label maps before scoring; nnU-Net saves a ``dataset.json`` next to its predictions.

    Returns:
        Method -> the values of its label map.
    """
    ref_label_map = label_map or _label_map_of(references.root, references.root.resolve().parent)
    extra_values = {}
    for method, folder in folders.items():
        pred_label_map = _label_map_of(folder.root)
        if pred_label_map is not None and ref_label_map is not None:
            check_agreement(ref_label_map, pred_label_map, folder.root / "dataset.json")
            extra_values[method] = pred_label_map.known_values
        unmatched = _unmatched(folder, references)
        if unmatched:
            logger.warning("%s %s: no reference, skipped: %s", method, folder.root, ", ".join(unmatched[:20]))
        if folder.cases and folder.cases.keys().isdisjoint(references.cases):
            raise DataError(
                "no prediction has the same name as a reference",
                file=folder.root,
                found=", ".join(list(folder.cases)[:5]),
                expected=", ".join(list(references.cases)[:5]),
            )
    return extra_values


def _label_map_of(*folders: Path) -> LabelMap | None:
    """Return the label map of the first folder that has a ``dataset.json`` with labels."""
    for folder in folders:
        try:
            return read_label_map(folder / "dataset.json")
        except DataError:
            continue
    return None


def _unmatched(folder: MaskFolder, references: MaskFolder) -> tuple[str, ...]:
    return (*sorted(set(folder.cases) - set(references.cases)), *folder.unknown)


def _with_observed_labels(results: Sequence[CaseResult]) -> tuple[LabelMap, list[CaseResult]]:
    """Take the classes from the references' values, and add absent classes to every case as empty on both sides.

    A case with a predicted value that no reference has fails: the label maps most likely differ.
    """
    in_reference = {n for r in results for n, s in r.scores.items() if s["ref_voxels"]}
    if not in_reference:
        errors = next((r.error for r in results if r.error), "the masks hold background only")
        raise DataError("the references contain no class", found=errors, hint="give --dataset dataset.json")
    label_map = LabelMap({name: (int(name),) for name in sorted(in_reference, key=int)})
    complete = []
    for result in results:
        extra_values = sorted(set(result.scores) - in_reference, key=int)
        if extra_values:
            error = DataError(
                "the prediction contains values that no reference has",
                file=result.prediction.describe() if result.prediction else None,
                found=", ".join(extra_values[:12]),
                expected=", ".join(label_map.classes),
                hint="give --dataset dataset.json if these classes are valid; otherwise the label maps differ",
            )
            complete.append(replace(result, scores={}, error=str(error)))
        elif result.error is None:
            scores = {name: result.scores.get(name) or both_empty_scores() for name in label_map.classes}
            complete.append(replace(result, scores=scores))
        else:
            complete.append(result)
    return label_map, complete
