"""Means with intervals, and paired comparisons, over cases.

A column is a class or a metric, a row is a case; NaN marks a score that is not defined and is left out of its column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
RESAMPLES = 10_000
SEED = 0
NUMBERS_AT_ONCE = 2_000_000
"""Random numbers that the bootstrap draws together, which bounds its memory."""
_EXACT = 300  # differences up to which the signed-rank test is exact


class Description(NamedTuple):
    """Summary of one column; NaN where there are too few values.

    Attributes:
        n: Values.
        mean: Mean.
        sd: Standard deviation (n - 1).
        median: Median.
        q1: Lower quartile.
        q3: Upper quartile.
        low: Lower end of the 95% bootstrap interval of the mean.
        high: Upper end.
    """

    n: int
    mean: float
    sd: float
    median: float
    q1: float
    q3: float
    low: float
    high: float


def bootstrap_means(values: ArrayLike, resamples: int = RESAMPLES, seed: int = SEED) -> Array:
    """Column means of samples of the rows drawn with replacement.

    All columns see the same samples, so that means over columns can be taken of the result.

    Args:
        values: Shape (cases, columns); NaN is left out.
        resamples: Samples.
        seed: Of the draw.

    Returns:
        Shape (resamples, columns); NaN where a sample had no value.

    Source: Efron 1979; percentile intervals of these means are Efron and Tibshirani 1993, chapter 13.
    """
    table = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(table)
    filled = np.where(known, table, 0.0)
    rng = np.random.default_rng(seed)
    cases = len(table)
    chance = np.full(cases, 1 / cases)
    parts = []
    step = max(1, NUMBERS_AT_ONCE // cases)
    for start in range(0, resamples, step):
        drawn = rng.multinomial(cases, chance, size=min(step, resamples - start)).astype(np.float64)
        n = drawn @ known
        parts.append(np.divide(drawn @ filled, n, out=np.full(n.shape, np.nan), where=n > 0))
    return np.concatenate(parts)


def interval(means: Array) -> Array:
    """2.5th and 97.5th percentile of each column of bootstrapped means, shape (2, columns)."""
    result = np.full((2, means.shape[1]), np.nan)
    for column in range(means.shape[1]):
        known = means[~np.isnan(means[:, column]), column]
        if len(known):
            result[:, column] = np.percentile(known, [2.5, 97.5])
    return result


def describe(values: ArrayLike, resamples: int = RESAMPLES, seed: int = SEED) -> list[Description]:
    """Summary of each column; a single case gives no interval.

    Args:
        values: Shape (cases, columns).
        resamples: Bootstrap samples.
        seed: Of the bootstrap.
    """
    table = np.asarray(values, dtype=np.float64)
    lows, highs = interval(bootstrap_means(table, resamples, seed))
    return [_describe(column, low, high) for column, low, high in zip(table.T, lows, highs, strict=True)]


def _describe(column: Array, low: float, high: float) -> Description:
    known = column[~np.isnan(column)]
    nan = float("nan")
    if not len(known):
        return Description(0, nan, nan, nan, nan, nan, nan, nan)
    q1, median, q3 = (float(q) for q in np.percentile(known, [25, 50, 75]))
    if len(known) == 1:
        return Description(1, float(known[0]), nan, median, q1, q3, nan, nan)
    return Description(
        len(known), float(known.mean()), float(known.std(ddof=1)), median, q1, q3, float(low), float(high)
    )


def wilcoxon_p(differences: ArrayLike) -> float:
    """Two-sided p of the Wilcoxon signed-rank test; zero differences are left out, without others p is 1.

    Exact also with ties (the distribution of the rank sum under random signs is added up rank by rank) for up to 300
    differences, the normal approximation beyond.

    Source: Wilcoxon 1945; Pratt and Gibbons 1981, section 3.
    """
    known = np.asarray(differences, dtype=np.float64)
    known = known[~np.isnan(known) & (known != 0)]
    if not len(known):
        return 1.0
    _, place, counts = np.unique(np.abs(known), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    doubled = (2 * last - counts + 1)[place]  # twice the mean rank of equal sizes: a whole number
    positive = int(doubled[known > 0].sum())
    if len(known) > _EXACT:
        spread = math.sqrt(float((doubled.astype(np.float64) ** 2).sum()))
        return math.erfc(abs(2 * positive - int(doubled.sum())) / spread / math.sqrt(2))
    chance = np.ones(1)
    for rank in doubled:
        chance = 0.5 * (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0)))
    return float(min(1.0, 2 * min(chance[: positive + 1].sum(), chance[positive:].sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979); NaN stays NaN and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in corrected]
