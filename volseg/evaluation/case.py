"""Scoring of one case: the predictions of all methods against a reference that is read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from volseg.errors import DataError, GeometryError, VolsegError
from volseg.evaluation.masks import CaseMask, empty_case_mask, read_case_mask
from volseg.evaluation.results import CaseResult, Settings
from volseg.evaluation.sources import MaskSource
from volseg.io.cases import GridRule
from volseg.io.labels import LabelMap
from volseg.metrics.scores import case_scores
from volseg.metrics.table import ClassScores


@dataclass(frozen=True)
class CaseTask:
    """Input of a worker process: one case and the settings.

    Attributes:
        case: Name of the case.
        reference: Files of the reference.
        predictions: Method -> files of its prediction; ``None`` if it is missing.
        label_map: The classes; ``None`` uses the values that occur in the masks.
        settings: How scores are computed.
        extra_values: Method -> additional valid values of its predictions, which are not scored.
        grids: When the grids of prediction (that of the image) and reference (the label) count as the same.
    """

    case: str
    reference: MaskSource
    predictions: Mapping[str, MaskSource | None]
    label_map: LabelMap | None
    settings: Settings
    extra_values: Mapping[str, frozenset[int]] = field(default_factory=dict)
    grids: GridRule = field(default_factory=GridRule)


def score_case(task: CaseTask) -> list[CaseResult]:
    """Score the predictions of all methods; the results record errors instead of raising them."""
    try:
        reference = _read(task.reference, task.label_map, "reference")
    except Exception as error:  # one invalid file must not stop the other cases
        return [_failure(task, method, error) for method in task.predictions]
    results = []
    for method, source in task.predictions.items():
        try:
            results.append(_score_method(task, method, source, reference))
        except Exception as error:
            results.append(_failure(task, method, error))
    return results


def finished_case(task: CaseTask, outcome: Callable[[], list[CaseResult]]) -> list[CaseResult]:
    """Return the results of a case from a worker process, or failed results if the process died."""
    try:
        return outcome()
    except VolsegError as error:
        return [_failure(task, method, error) for method in task.predictions]


def failure_text(error: BaseException) -> str:
    """Return the message of an error, with its type unless it is a :class:`VolsegError`."""
    return str(error) if isinstance(error, VolsegError) else f"{type(error).__name__}: {error}"


def _failure(task: CaseTask, method: str, error: BaseException) -> CaseResult:
    return CaseResult(
        method,
        task.case,
        {},
        missing=task.predictions[method] is None,
        error=failure_text(error),
        prediction=task.predictions[method],
        reference=task.reference,
    )


def _read(
    source: MaskSource, label_map: LabelMap | None, role: str, extra_values: frozenset[int] = frozenset()
) -> CaseMask:
    mask = read_case_mask(source, label_map)
    unknown = sorted(set(mask.unknown_values) - extra_values)
    if unknown:
        classes = label_map.classes.items() if label_map else ()
        raise DataError(
            f"the {role} contains values that are not in the label map",
            file=source.describe(),
            found=", ".join(map(str, unknown[:12])),
            expected=", ".join(f"{'+'.join(map(str, values))} {name}" for name, values in classes),
            hint="give the --dataset that defines the labels of these masks",
        )
    return mask


def _score_method(task: CaseTask, method: str, source: MaskSource | None, reference: CaseMask) -> CaseResult:
    label_map = task.label_map
    notes: list[str] = []
    if source is None:
        prediction = empty_case_mask(reference.grid, label_map or _classes_of(reference))
    else:
        prediction = _read(source, label_map, "prediction", task.extra_values.get(method, frozenset()))
        if prediction.missing_classes:
            notes.append("no file, scored as empty: " + ", ".join(prediction.missing_classes))
        tolerance_mm = task.grids.tolerance_mm
        prediction = prediction.in_order_of(reference.grid, tolerance_mm)
        if task.grids.label_takes_image_grid and not prediction.grid.same_as(reference.grid, tolerance_mm):
            reference = reference.on(prediction.grid)
        if not prediction.grid.same_as(reference.grid, tolerance_mm):
            raise GeometryError(
                "prediction and reference lie on different grids",
                file=source.describe(),
                found=prediction.grid.describe(),
                expected=f"{reference.grid.describe()} ({task.reference.describe()})",
                hint="save predictions on the grid of the scan; resampling them here would change the scores",
            )
    return CaseResult(
        method,
        task.case,
        _score_layers(prediction, reference, task),
        missing=source is None,
        notes=tuple(notes),
        prediction=source,
        reference=task.reference,
    )


def _classes_of(*masks: CaseMask) -> LabelMap:
    """Return the classes that occur in masks read without a label map."""
    classes = {name: values for mask in masks for layer in mask.layers for name, values in layer.classes.items()}
    return LabelMap(dict(sorted(classes.items(), key=lambda item: item[1])))


def _score_layers(prediction: CaseMask, reference: CaseMask, task: CaseTask) -> dict[str, ClassScores]:
    """Compute the scores of all classes, each from the layers that contain it."""
    # Without a label map, a class that occurs in one mask only is empty in the other.
    discovered = task.label_map is None
    label_map = task.label_map or _classes_of(reference, prediction)
    scores: dict[str, ClassScores] = {}
    for pred in prediction.layers:
        for ref in reference.layers:
            names = [n for n in label_map.classes if discovered or (n in pred.classes and n in ref.classes)]
            if names:
                scores |= case_scores(
                    pred.labels,
                    ref.labels,
                    reference.grid.spacing_mm,
                    {name: label_map.classes[name] for name in names},
                    hd_mode=task.settings.hd_mode,
                    nsd_tolerance_mm={name: task.settings.tolerance_mm(name) for name in names},
                    ignore_label=label_map.ignore_label,
                )
    return {name: scores[name] for name in label_map.classes}
