from __future__ import annotations

import numpy as np
import pytest

from volseg.planning.outliers import MIN_CASES, odd_shares, opposite, outlying, swapped


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


def test_a_label_that_is_inverted_or_filled() -> None:
    shares = np.array([0.1, 0.12, 0.08, 0.1, 0.15, 0.11])
    assert not odd_shares(shares).any()
    for share in (0.9, 1.0):
        assert np.flatnonzero(odd_shares(np.append(shares, share))).tolist() == [6]
    assert not odd_shares(np.append(shares, 0.0)).any()  # an empty label is another finding
    assert not odd_shares(np.array([0.5, 0.6, 0.8, 0.4, 0.9, 0.55])).any()  # crops
    assert not odd_shares(np.append(shares, 0.45)).any()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([100, 5], [5, 100], True),
        ([5, 5], [5, 100], False),  # a part of the first
        ([100, 100], [5, 100], False),  # a large lesion
        ([100, 900], [5, 0.5], False),
        ([100, 30], [5, 100], False),  # the first is not like the second
        ([100, 150], [100, 30], False),  # left and right
        ([100, 5], [0, 100], False),  # the second is in one case only
    ],
)
def test_two_classes_swapped_in_one_case(first: list[float], second: list[float], expected: bool) -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.2, (2, 9))
    volumes = [np.append(usual * noise[row], one) for row, (usual, one) in enumerate((first, second))]
    assert swapped(*volumes).tolist() == [False] * 9 + [expected]


def test_two_classes_the_other_way_round() -> None:
    rng = np.random.default_rng(0)
    kidneys = np.array([120.0, 5.0, -10.0]) + rng.normal(0, 10, (9, 3))
    one = [-115.0, 0.0, 0.0]
    assert np.flatnonzero(opposite(np.vstack([kidneys, one]))).tolist() == [9]
    assert not opposite(np.vstack([kidneys, [20.0, 0.0, 0.0]])).any()
    assert not opposite(np.vstack([kidneys, [np.nan] * 3])).any()
    assert not opposite(np.vstack([kidneys, [-70.0, 5.0, 120.0]])).any()  # parts of structures at another place
    assert not opposite(np.vstack([kidneys[:3], one])).any()  # too few cases
    assert not opposite(rng.normal(10, 40, (30, 3))).any()  # a lesion anywhere in an organ
