from __future__ import annotations

import numpy as np
import pytest

from volseg.planning.outliers import MIN_CASES, outlying


def which(values: list[float] | np.ndarray, floor: float = 1.0) -> list[int]:
    return np.flatnonzero(outlying(values, floor)).tolist()


def test_one_far_value_is_an_outlier_from_five_cases_on() -> None:
    assert MIN_CASES == 5
    assert which([0, 0, 0, 0, 2]) == [4]
    assert which([0, 0, 0, 2]) == []
    assert which([0, 0, 0, 0, 0.9]) == []  # below the floor


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_outliers(seed: int) -> None:
    assert which(np.random.default_rng(seed).normal(0, 3, 200), floor=0.01) == []


def test_the_spread_widens_what_is_usual() -> None:
    spread = np.linspace(-3, 3, 50)
    assert which([*spread, 6.0]) == []
    assert which([*spread, 30.0]) == [50]


def test_a_second_protocol_is_no_outlier_and_hides_none() -> None:
    values = [0.0] * 30 + [5.0] * 8 + [50.0]
    assert which(values) == [38]
    assert which([0.0] * 39 + [5.0]) == [39]


def test_the_order_of_the_cases_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 0.1, 40), [4.0, -3.0]])
    order = rng.permutation(len(values))
    np.testing.assert_array_equal(outlying(values[order], 1.0), outlying(values, 1.0)[order])
