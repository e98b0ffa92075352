"""Masks and schedules of pretraining."""

from __future__ import annotations

import math

import numpy as np
import pytest

from volseg.pretraining.masking import RATIOS, block_mask, mask_ratio
from volseg.pretraining.schedules import cosine, last_layer_moves, teacher_momentum, teacher_temperature


@pytest.mark.parametrize("height", [4, 16])
def test_a_mask_has_exactly_the_patches_asked_for(height: int) -> None:
    rng = np.random.default_rng(0)
    for count in range(height * 9 + 1):
        assert block_mask(height, 9, count, rng).sum() == count


def test_most_masked_patches_touch_another() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(20):
        mask = np.pad(block_mask(16, 16, 64, rng), 1)
        beside = mask[:-2, 1:-1] | mask[2:, 1:-1] | mask[1:-1, :-2] | mask[1:-1, 2:]
        shares.append((beside & mask[1:-1, 1:-1]).sum() / 64)
    assert np.mean(shares) > 0.9  # of 64 single patches, 68% would


def test_the_ratios_of_a_batch_cover_the_whole_range() -> None:
    rng = np.random.default_rng(0)
    ratios = [mask_ratio(position, 8, rng) for position in range(8)]
    edges = np.linspace(*RATIOS, 9)
    assert all(low <= ratio <= high for low, ratio, high in zip(edges, ratios, edges[1:], strict=False))


def test_schedules_by_hand() -> None:
    assert [cosine(2.0, 4.0, spent) for spent in (0, 0.5, 1)] == pytest.approx([2, 3, 4])
    assert teacher_momentum(0.992, 0.5) == pytest.approx(0.996)
    assert teacher_momentum(0.992, 1.0) == 1
    assert teacher_momentum(0.992, 0.25) == pytest.approx(1 - 0.004 * (1 + math.sqrt(0.5)))
    assert [teacher_temperature(0.07, spent) for spent in (0, 0.15, 0.3, 1)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert [last_layer_moves(spent) for spent in (0, 0.009, 0.01)] == [False, False, True]
