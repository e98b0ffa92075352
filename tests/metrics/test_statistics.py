from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from volseg.metrics.statistics import bootstrap_means, describe, holm, interval, wilcoxon_p

NAN = float("nan")


def test_description_by_hand() -> None:
    description = describe([[1.0], [2.0], [NAN], [3.0], [6.0]])[0]
    assert description.n == 4
    assert description.mean == 3
    assert description.sd == pytest.approx(math.sqrt(14 / 3))
    assert (description.q1, description.median, description.q3) == (1.75, 2.5, 3.75)
    assert 1 < description.low < 3 < description.high < 6


def test_few_values_give_no_interval() -> None:
    single, empty = describe([[1.0, NAN], [NAN, NAN]])
    assert (single.n, single.mean) == (1, 1)
    assert math.isnan(single.low)
    assert math.isnan(single.sd)
    assert empty.n == 0
    assert math.isnan(empty.mean)


def test_bootstrap_is_seeded_and_matches_the_standard_error() -> None:
    values = np.random.default_rng(3).normal(5, 2, (60, 2))
    means = bootstrap_means(values, resamples=4000)
    assert np.array_equal(means, bootstrap_means(values, resamples=4000))
    assert not np.array_equal(means, bootstrap_means(values, resamples=4000, seed=1))
    np.testing.assert_allclose(means.std(axis=0), values.std(axis=0) / math.sqrt(60), rtol=0.05)
    low, high = interval(means)
    half = 1.96 * values.std(axis=0) / math.sqrt(60)
    np.testing.assert_allclose(high - low, 2 * half, rtol=0.06)


def test_bootstrap_resamples_whole_rows() -> None:
    """Columns share the samples, so columns that differ by a constant have means that differ by it."""
    values = np.random.default_rng(0).random((7, 1))
    means = bootstrap_means(np.hstack([values, values + 1]), resamples=50)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1)
    possible = {round(sum(sample) / 2, 9) for sample in product([0.25, 0.75], repeat=2)}
    assert set(np.round(bootstrap_means([[0.25], [0.75]], 40)[:, 0], 9)) == possible


def test_small_chunks_give_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volseg.metrics.statistics.NUMBERS_AT_ONCE", 100)
    assert bootstrap_means(np.ones((30, 2)), resamples=10).shape == (10, 2)


def exact_p(differences: list[float]) -> float:
    """Return p from an enumeration of all signs of the ranks."""
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(differences))
    observed = ranks[np.array(differences) > 0].sum()
    sums = np.array([np.dot(signs, ranks) for signs in product((0, 1), repeat=len(ranks))])
    return min(1.0, 2 * min((sums >= observed - 1e-9).mean(), (sums <= observed + 1e-9).mean()))


@pytest.mark.parametrize(
    "differences", [[1.0], [1, -2, 3], [1, 1, 2, -1, 5], [3, 3, 3, 3, -3, 1, 1], [1, 2, 3, 4, 5, 6]]
)
def test_wilcoxon_equals_enumeration_with_ties(differences: list[float]) -> None:
    assert wilcoxon_p(differences) == pytest.approx(exact_p(differences))


def test_wilcoxon_equals_scipy() -> None:
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(0)
    for n, method in ((20, "exact"), (45, "exact"), (400, "auto")):  # asymptotic, a name that old versions lack
        values = rng.normal(0.2, 1, n)
        assert wilcoxon_p(values) == pytest.approx(wilcoxon(values, method=method).pvalue, rel=1e-9)


def test_wilcoxon_skips_zeros_and_nan() -> None:
    assert wilcoxon_p([0, 0, NAN]) == 1
    assert wilcoxon_p([0, NAN, 1, 2, -3]) == wilcoxon_p([1, 2, -3])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, NAN]) == pytest.approx([0.03, 0.06, 0.06, NAN], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
