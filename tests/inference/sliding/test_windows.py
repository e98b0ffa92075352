"""Window positions and weights."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from volseg.inference.sliding.windows import gaussian_importance, window_starts


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [
        (16, 16, 0.5, [0]),
        (17, 16, 0.5, [0, 1]),
        (32, 16, 0.5, [0, 8, 16]),
        (30, 16, 0.5, [0, 8, 14]),
        (48, 16, 0.0, [0, 16, 32]),
        (9, 5, 0.5, [0, 2, 4]),
        (3, 1, 0.9, [0, 1, 2]),
    ],
)
def test_starts(size: int, window: int, overlap: float, expected: list[int]) -> None:
    assert window_starts(size, window, overlap) == expected


@given(st.integers(1, 40), st.integers(0, 80), st.floats(0, 0.95))
def test_windows_cover_the_axis_and_overlap_enough(window: int, beyond: int, overlap: float) -> None:
    starts = window_starts(window + beyond, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == beyond
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= max(1, window * (1 - overlap)) for step in steps)


def test_importance_by_hand() -> None:
    weight = gaussian_importance((3, 1, 4))
    assert weight.shape == (3, 1, 4)
    assert weight.dtype == torch.float32
    middle, edge = 0.5 / (4 / 8), 1.5 / (4 / 8)  # distances along the last axis in sigmas
    off = 1 / (3 / 8)  # and along the first
    assert weight[1, 0, 1].item() == pytest.approx(math.exp(-(middle**2) / 2))
    assert weight[0, 0, 2].item() == pytest.approx(math.exp(-(off**2 + middle**2) / 2))
    assert weight[1, 0, 0].item() == pytest.approx(math.exp(-(edge**2) / 2))
    assert weight[0, 0, 0].item() == pytest.approx(1e-3)  # exp(-8.06) is below the least weight


@pytest.mark.parametrize("window", [(1, 1, 1), (2, 3, 4), (8, 16, 17)])
def test_importance_is_symmetric_and_never_vanishes(window: tuple[int, int, int]) -> None:
    weight = gaussian_importance(window)
    for axis in range(3):
        assert torch.equal(weight, weight.flip(axis))
    assert weight.min() >= 1e-3 * (1 - 1e-6)
    assert weight.max() <= 1
