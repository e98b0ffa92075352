"""Summary of an evaluation as JSON: means with intervals, counts, aggregations and comparisons."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from volseg.evaluation.compare import compare_methods
from volseg.evaluation.results import CaseResult, Evaluation
from volseg.metrics.policy import STATUSES
from volseg.metrics.statistics import RESAMPLES, SEED, Array, Description, bootstrap_means, describe, interval
from volseg.metrics.table import HEADLINE, METRIC
from volseg.version import __version__

FORMAT = 1
FEW_CASES = 5
"""Intervals of fewer cases get a note: from four values the bootstrap draws at most 35 different means."""


def summarize(evaluation: Evaluation, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, Any]:
    """Summarize an evaluation as plain JSON values, with ``None`` for scores that are not defined.

    Args:
        evaluation: The scores.
        resamples: Number of bootstrap samples per interval.
        seed: Seed of the bootstrap.
    """
    summary = {
        "format": FORMAT,
        "volseg": __version__,
        "convention": convention(evaluation),
        "settings": {
            "hd_mode": evaluation.settings.hd_mode,
            "nsd_tolerance_mm": {name: evaluation.settings.tolerance_mm(name) for name in evaluation.classes},
            "bootstrap_resamples": resamples,
            "bootstrap_seed": seed,
        },
        "labels": {name: list(values) for name, values in evaluation.label_map.classes.items()},
        "ignore_label": evaluation.label_map.ignore_label,
        "n_cases": len(evaluation.cases),
        "methods": {name: _method(evaluation, name, resamples, seed) for name in evaluation.methods},
        "comparisons": compare_methods(evaluation, resamples, seed),
        "cases": [_case(result) for result in evaluation.results],
    }
    return dict(_plain(summary))


def convention(evaluation: Evaluation) -> str:
    """Return the line under every table that states the definitions."""
    hd95 = {
        "max": "larger directed 95th percentile between voxel borders (MONAI, MetricsReloaded)",
        "pooled": "95th percentile of both directions pooled, voxel borders (MedPy)",
        "surfel": "larger directed 95th percentile weighted by surface area (DeepMind)",
    }[evaluation.settings.hd_mode]
    tolerances = sorted({evaluation.settings.tolerance_mm(name) for name in evaluation.classes})
    return (
        "Original geometry, per case and class; mean over cases, then over classes. "
        "Dice: one mask empty 0, both empty not defined. "
        f"HD95: {hd95}, mm; one empty: image diagonal. "
        f"NSD: surface area within {', '.join(f'{t:g}' for t in tolerances)} mm (DeepMind); one empty 0. "
        f"Missing predictions count as empty. [95% bootstrap interval over cases]{_few_cases(evaluation)}"
    )


def _few_cases(evaluation: Evaluation) -> str:
    """Return the note on classes that so few cases score that their intervals are too narrow."""
    scored = [np.isfinite(evaluation.values(method, "dice")).sum(axis=0) for method in evaluation.methods]
    counts = dict(zip(evaluation.classes, np.min(scored, axis=0), strict=True))
    few = [f"{name}: {n}" for name, n in counts.items() if 1 < n < FEW_CASES]
    if not few:
        return ""
    named = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
    return f". Intervals of fewer than {FEW_CASES} cases are too narrow to rely on ({named})."


def _method(evaluation: Evaluation, method: str, resamples: int, seed: int) -> dict[str, Any]:
    results = evaluation.of_method(method)
    tables = {metric: evaluation.values(method, metric) for metric in METRIC}
    statuses = evaluation.statuses(method)
    names = [metric.name for metric in HEADLINE]
    tables["hd95_detected"] = np.where(statuses == "ok", tables["hd95"], np.nan)
    described = {metric: describe(table, resamples, seed) for metric, table in tables.items()}
    return {
        "n_missing": sum(result.missing for result in results),
        "missing": [result.case for result in results if result.missing],
        "n_failed": sum(result.error is not None for result in results),
        "failed": {result.case: result.error for result in results if result.error is not None},
        "unmatched": list(evaluation.unmatched[method]),
        "headline": {name: _headline(tables[name], resamples, seed) for name in (*names, "hd95_detected")},
        "aggregations": {name: _aggregations(evaluation, method, name, tables[name], statuses) for name in names},
        "classes": {
            name: {
                **{f"n_{status}": int((statuses[:, number] == status).sum()) for status in (*STATUSES, "failed")},
                **{metric: _description(columns[number]) for metric, columns in described.items()},
            }
            for number, name in enumerate(evaluation.classes)
        },
    }


def _headline(table: Array, resamples: int, seed: int) -> dict[str, Any]:
    """Compute the mean over cases, then over classes, with its bootstrap interval."""
    defined = ~np.isnan(table).all(axis=0)
    means = bootstrap_means(table[:, defined], resamples, seed)
    low, high = interval(_row_means(means)[:, None])[:, 0] if len(table) > 1 else (math.nan, math.nan)
    return {
        "mean": _mean(_column_means(table)),
        "ci95": [float(low), float(high)],
        "n_cases": int((~np.isnan(table)).any(axis=1).sum()),
        "n_classes": int(defined.sum()),
    }


def _aggregations(
    evaluation: Evaluation, method: str, metric: str, table: Array, statuses: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Compute the mean in each of the ways in use, by name."""
    has_reference = np.isin(statuses, ("ok", "missed"))
    means = {
        "mean_over_cases_then_classes": _mean(_column_means(table)),
        "mean_over_classes_then_cases": _mean(_row_means(table)),
        "mean_over_all_pairs": _mean(table),
        "cases_with_reference_only": _mean(_column_means(np.where(has_reference, table, np.nan))),
        "detected_only": _mean(_column_means(np.where(statuses == "ok", table, np.nan))),
    }
    if METRIC[metric].is_overlap:
        means["both_empty_as_1"] = _mean(_column_means(np.where(statuses == "both_empty", 1.0, table)))
    if metric == "dice":
        sizes = evaluation.values(method, "pred_voxels") + evaluation.values(method, "ref_voxels")
        # The intersection follows from Dice and the sizes.
        both = np.where(sizes > 0, table * sizes / 2, np.where(np.isnan(sizes), np.nan, 0))
        total = np.nansum(sizes, axis=0)
        pooled = np.divide(2 * np.nansum(both, axis=0), total, out=np.full(len(total), np.nan), where=total > 0)
        means["pooled_voxels_per_class"] = _mean(pooled)
    return means


def _mean(values: Array) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _column_means(table: Array) -> Array:
    return np.array([_mean(column) for column in table.T])


def _row_means(table: Array) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows without a value become NaN without a warning
        return np.asarray(np.nanmean(table, axis=1)) if table.shape[1] else np.full(len(table), np.nan)


def _description(description: Description) -> dict[str, Any]:
    values = description._asdict()
    low, high = values.pop("low"), values.pop("high")
    return {**values, "ci95": [low, high]}


def _case(result: CaseResult) -> dict[str, Any]:
    return {
        "method": result.method,
        "case": result.case,
        "missing": result.missing,
        "error": result.error,
        "notes": list(result.notes),
        "prediction": result.prediction.describe() if result.prediction else None,
        "reference": result.reference.describe() if result.reference else None,
        "scores": result.scores,
    }


def _plain(value: Any) -> Any:
    """Replace NaN by ``None``, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
