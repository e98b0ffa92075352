"""Accuracy, balanced accuracy and AUC, with bootstrap intervals over patients."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.metrics.statistics import NUMBERS_AT_ONCE, SEED, interval

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 2000
METRICS = ("accuracy", "balanced_accuracy", "auc")


def weighted_scores(truth: Ints, probabilities: Array, predicted: Ints, weights: Array) -> Array:
    """Compute the scores of samples that count several times, or not at all.

    Balanced accuracy is the mean over classes of the share of a class that is predicted as such. AUC is that of each
    class against the others, averaged over classes without weights. A class without weight is left out of both.

    Args:
        truth: ``(N,)`` class numbers from 0.
        probabilities: ``(N, K)``.
        predicted: ``(N,)``.
        weights: ``(R, N)``, how often each sample counts.

    Returns:
        ``(R, 3)``: accuracy, balanced accuracy, AUC; NaN where none is defined.

    Source: AUC as the Mann-Whitney statistic: Hanley and McNeil 1982; one against the rest: Provost and Domingos 2000.
    """
    right = (truth == predicted).astype(np.float64)
    classes = range(probabilities.shape[1])
    recalls, areas = [], []
    for number in classes:
        inside = (truth == number).astype(np.float64)
        recalls.append(_ratio(weights @ (inside * right), weights @ inside))
        areas.append(weighted_auc(inside, probabilities[:, number], weights))
    accuracy = _ratio(weights @ right, weights.sum(axis=1))
    return np.stack([accuracy, _mean(np.array(recalls)), _mean(np.array(areas))], axis=1)


def weighted_auc(positive: Array, values: Array, weights: Array) -> Array:
    """Compute the probability that a positive sample has a higher value than a negative one; ties count half.

    Args:
        positive: ``(N,)``, 1 or 0.
        values: ``(N,)``.
        weights: ``(R, N)``.

    Returns:
        ``(R,)``; NaN where there are no positive or no negative samples.
    """
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    above, below = (
        np.add.reduceat(weights[:, order] * side[order], starts, axis=1) for side in (positive, 1 - positive)
    )
    lower = np.cumsum(below, axis=1) - below
    pairs = above.sum(axis=1) * below.sum(axis=1)
    return _ratio((above * (lower + below / 2)).sum(axis=1), pairs)


def scores_with_intervals(
    truth: Ints,
    probabilities: Array,
    predicted: Ints,
    groups: Ints,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, dict[str, Any]]:
    """Return each of `METRICS` as ``{"mean": value, "ci95": [low, high]}``, with percentiles of the bootstrap.

    Args:
        truth: ``(N,)`` class numbers from 0.
        probabilities: ``(N, K)``.
        predicted: ``(N,)``.
        groups: ``(N,)``, numbers from 0 of the patients, who are drawn with replacement, with all their samples.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    score = partial(weighted_scores, truth, probabilities, predicted)
    values = score(np.ones((1, len(truth))))[0]
    count = int(groups.max()) + 1
    rng, parts = np.random.default_rng(seed), []
    step = max(1, NUMBERS_AT_ONCE // len(truth))
    for start in range(0, resamples, step):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        parts.append(score(drawn[:, groups].astype(np.float64)))
    low, high = interval(np.concatenate(parts))
    ends = [[_plain(each) for each in pair] if count > 1 else [None, None] for pair in zip(low, high, strict=True)]
    return {
        name: {"mean": _plain(value), "ci95": pair} for name, value, pair in zip(METRICS, values, ends, strict=True)
    }


def _ratio(above: Array, below: Array) -> Array:
    result: Array = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return result


def _mean(values: Array) -> Array:
    """Return the mean over the rows, without NaN: ``(K, R)`` -> ``(R,)``."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
