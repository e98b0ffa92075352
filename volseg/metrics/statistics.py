"""Bootstrap intervals, summary statistics and signed-rank tests over cases.

A row is a case, a column is a class or a metric. NaN marks a score that is not defined and is skipped.
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
"""Random numbers that the bootstrap draws at once, which bounds its memory."""
_EXACT = 300  # number of differences up to which the signed-rank test is exact


class Description(NamedTuple):
    """Summary of one column; NaN where there are too few values.

    Attributes:
        n: Number of values.
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
    """Compute column means of bootstrap samples: rows drawn with replacement.

    All columns share the samples, so that the result can be averaged over columns.

    Args:
        values: Shape (cases, columns); NaN is skipped.
        resamples: Number of samples.
        seed: Seed of the random state.

    Returns:
        Shape (resamples, columns); NaN where a sample has no value.

    Source: Efron 1979; percentile intervals of these means are Efron and Tibshirani 1993, chapter 13.
    """
    table = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(table)
    filled = np.where(defined, table, 0.0)
    rng = np.random.default_rng(seed)
    cases = len(table)
    probabilities = np.full(cases, 1 / cases)
    parts = []
    step = max(1, NUMBERS_AT_ONCE // cases)
    for start in range(0, resamples, step):
        # How often each case occurs in each sample; sums over samples are then matrix products.
        weights = rng.multinomial(cases, probabilities, size=min(step, resamples - start)).astype(np.float64)
        n = weights @ defined
        parts.append(np.divide(weights @ filled, n, out=np.full(n.shape, np.nan), where=n > 0))
    return np.concatenate(parts)


def interval(means: Array) -> Array:
    """Return the 2.5th and 97.5th percentile of each column of bootstrapped means, shape (2, columns)."""
    result = np.full((2, means.shape[1]), np.nan)
    for column in range(means.shape[1]):
        defined = means[~np.isnan(means[:, column]), column]
        if len(defined):
            result[:, column] = np.percentile(defined, [2.5, 97.5])
    return result


def describe(values: ArrayLike, resamples: int = RESAMPLES, seed: int = SEED) -> list[Description]:
    """Summarize each column; a single case has no interval.

    Args:
        values: Shape (cases, columns).
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    table = np.asarray(values, dtype=np.float64)
    lows, highs = interval(bootstrap_means(table, resamples, seed))
    return [_describe(column, low, high) for column, low, high in zip(table.T, lows, highs, strict=True)]


def _describe(column: Array, low: float, high: float) -> Description:
    defined = column[~np.isnan(column)]
    nan = float("nan")
    if not len(defined):
        return Description(0, nan, nan, nan, nan, nan, nan, nan)
    q1, median, q3 = (float(q) for q in np.percentile(defined, [25, 50, 75]))
    if len(defined) == 1:
        return Description(1, float(defined[0]), nan, median, q1, q3, nan, nan)
    return Description(
        len(defined), float(defined.mean()), float(defined.std(ddof=1)), median, q1, q3, float(low), float(high)
    )


def wilcoxon_p(differences: ArrayLike) -> float:
    """Return the two-sided p value of the Wilcoxon signed-rank test; zeros are skipped, and p is 1 if nothing remains.

    The test is exact, also with ties, for up to 300 differences: the distribution of the rank sum under random signs is
    convolved rank by rank. Above 300 it uses the normal approximation.

    Source: Wilcoxon 1945; Pratt and Gibbons 1981, section 3.
    """
    nonzero = np.asarray(differences, dtype=np.float64)
    nonzero = nonzero[~np.isnan(nonzero) & (nonzero != 0)]
    if not len(nonzero):
        return 1.0
    _, tie_group, counts = np.unique(np.abs(nonzero), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    doubled_ranks = (2 * last - counts + 1)[tie_group]  # twice the mean rank of a tie group is a whole number
    positive = int(doubled_ranks[nonzero > 0].sum())
    if len(nonzero) > _EXACT:
        spread = math.sqrt(float((doubled_ranks.astype(np.float64) ** 2).sum()))
        return math.erfc(abs(2 * positive - int(doubled_ranks.sum())) / spread / math.sqrt(2))
    probabilities = np.ones(1)  # of each doubled rank sum
    for rank in doubled_ranks:
        probabilities = 0.5 * (np.pad(probabilities, (0, rank)) + np.pad(probabilities, (rank, 0)))
    return float(min(1.0, 2 * min(probabilities[: positive + 1].sum(), probabilities[positive:].sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple tests (Holm 1979); NaN stays NaN and is not counted as a test."""
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(p), np.nan)
    defined = np.flatnonzero(~np.isnan(p))
    order = defined[np.argsort(p[defined], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in corrected]
