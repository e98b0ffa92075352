"""Paired comparison of methods: mean differences, signed-rank tests, wins and losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from volseg.evaluation.results import Evaluation
from volseg.metrics.statistics import RESAMPLES, SEED, Array, bootstrap_means, holm, interval, wilcoxon_p
from volseg.metrics.table import METRICS

TIE = 1e-9  # differences up to this are rounding errors


def compare_methods(evaluation: Evaluation, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Compare every pair of methods on every metric, with p values Holm-corrected over the classes.

    Args:
        evaluation: The scores.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    return [
        {
            "a": a,
            "b": b,
            "metric": metric.name,
            "higher_is_better": metric.higher_is_better,
            **_compare(evaluation, a, b, metric.name, metric.higher_is_better, resamples, seed),
        }
        for a, b in combinations(evaluation.methods, 2)
        for metric in METRICS
        if metric.higher_is_better is not None
    ]


def _compare(
    evaluation: Evaluation, a: str, b: str, metric: str, higher: bool, resamples: int, seed: int
) -> dict[str, Any]:
    """Compare ``a`` minus ``b`` over the cases in which both are defined."""
    difference = evaluation.values(a, metric) - evaluation.values(b, metric)
    return compare_paired(difference, evaluation.classes, higher, resamples, seed)


def compare_paired(
    difference: Array, classes: Sequence[str], higher: bool, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Any]:
    """Summarize the differences of two methods: mean, bootstrap interval, signed-rank test, wins, ties and losses.

    Args:
        difference: Scores of one method minus those of the other, shape (cases, classes); NaN is skipped.
        classes: Names of the classes.
        higher: Whether a higher score is better.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        ``classes``: name -> its numbers, and ``mean_over_classes``.
    """
    difference = np.where(np.abs(difference) <= TIE, 0.0, difference)
    defined = np.logical_not(np.isnan(difference)).any(axis=0).reshape(-1)
    means = bootstrap_means(difference, resamples, seed)
    lows, highs = interval(means)
    p_values = [
        wilcoxon_p(column) if has_pairs else math.nan for column, has_pairs in zip(difference.T, defined, strict=True)
    ]
    by_class = {
        name: {**_paired(difference[:, i], lows[i], highs[i], higher), "wilcoxon_p": p_values[i], "holm_p": corrected}
        for i, (name, corrected) in enumerate(zip(classes, holm(p_values), strict=True))
    }
    return {"classes": by_class, "mean_over_classes": _over_classes(difference[:, defined], means[:, defined], higher)}


def _over_classes(difference: Array, means: Array, higher: bool) -> dict[str, Any]:
    """Compare the cases' means over classes; the interval is of the mean over cases, then over classes."""
    if not difference.size:
        return {**_paired(np.zeros(0), math.nan, math.nan, higher), "wilcoxon_p": math.nan}
    cases = difference[~np.isnan(difference).all(axis=1)]
    per_case = np.nanmean(cases, axis=1)
    per_sample = means[~np.isnan(means).all(axis=1)]
    low, high = interval(np.nanmean(per_sample, axis=1)[:, None])[:, 0]
    result = _paired(per_case, float(low), float(high), higher)
    result["mean_difference"] = float(np.mean(np.nanmean(cases, axis=0)))
    return {**result, "wilcoxon_p": wilcoxon_p(per_case)}


def _paired(difference: Array, low: float, high: float, higher: bool) -> dict[str, Any]:
    defined = difference[~np.isnan(difference)]
    better = defined > 0 if higher else defined < 0
    ties = int((defined == 0).sum())
    wins = int(better.sum())
    return {
        "n": len(defined),
        "mean_difference": float(defined.mean()) if len(defined) else math.nan,
        "ci95": [float(low), float(high)] if len(defined) > 1 else [math.nan, math.nan],
        "wins": wins,
        "ties": ties,
        "losses": len(defined) - wins - ties,
    }
