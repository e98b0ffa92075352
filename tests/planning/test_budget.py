from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from tests.made.datasets import case, measured
from volseg.errors import ConfigError
from volseg.planning.budget import MemoryBudget
from volseg.planning.derive import make_plan
from volseg.planning.plan import Plan

LARGE = measured(*[case((256, 256, 200))] * 20)
SMALL = measured(*[case((48, 48, 32))] * 20)


def budget(megabytes: float) -> MemoryBudget:
    """Count 100 bytes for each voxel of a batch, beside 10 MB."""

    def needed(plan: Plan) -> int:
        return 10_000_000 + 100 * plan.batch_size * prod(plan.patch_size)

    return MemoryBudget(limit_bytes=round(megabytes * 1e6), training_bytes=needed, network="network")


def test_more_memory_never_gives_a_smaller_patch_or_batch() -> None:
    for data in (LARGE, measured(*[case((48, 48, 32))] * 200)):
        plans = [make_plan(data, {}, budget(megabytes)) for megabytes in (12, 15, 25, 40, 100, 300, 1000, 4000)]
        voxels = [prod(plan.patch_size) for plan in plans]
        batches = [plan.batch_size for plan in plans]
        assert voxels == sorted(voxels)
        assert batches == sorted(batches)
        assert len({*zip(voxels, batches, strict=True)}) > 3


def test_a_larger_patch_or_batch_would_not_fit() -> None:
    limit = budget(100)
    plan = make_plan(LARGE, {}, limit)
    assert limit.fits(plan)
    assert plan.batch_size == 2
    assert limit.training_bytes(plan) > 0.85 * limit.limit_bytes
    plan = make_plan(SMALL, {}, limit)
    assert plan.patch_size == (32, 48, 48)
    assert plan.batch_size == 2  # 5% of 20 cases is one
    many = make_plan(measured(*[case((48, 48, 32))] * 200), {}, limit)
    assert many.batch_size == 10  # 5% of 200 cases
    assert make_plan(measured(*[case((48, 48, 32))] * 200), {}, budget(70)).batch_size == 8  # (70 - 10) / 7.4


def test_what_is_set_by_hand_stays() -> None:
    assert make_plan(LARGE, {"batch_size": 1}, budget(100)).batch_size == 1
    assert make_plan(LARGE, {"patch_size": [32, 32, 32]}, budget(1000)).patch_size == (32, 32, 32)
    with pytest.raises(ConfigError, match=r"no patch fits into plan\.memory"):
        make_plan(LARGE, {"patch_size": [96, 96, 96]}, budget(100))


def test_a_limit_that_nobody_stated_only_enlarges_the_plan_of_the_rule() -> None:
    rule, large = make_plan(LARGE), replace(budget(1000), default=True)
    grown = make_plan(LARGE, {}, large)
    assert prod(grown.patch_size) > prod(rule.patch_size)
    assert "1 GB, the default on a GPU" in grown.reasons["patch_size"]
    assert "of 1 GB, the default on a GPU" in grown.reasons["batch_size"]
    assert make_plan(measured(*[case((48, 48, 32))] * 200), {}, large).batch_size == 10  # 5% of 200 cases
    for limit in (large, replace(budget(12), default=True)):  # 12 MB are too little for the patch of the rule
        by_hand = make_plan(LARGE, {"patch_size": [96, 96, 96]}, limit)
        assert (by_hand.patch_size, by_hand.batch_size) == ((96, 96, 96), 2)
        assert by_hand.reasons["batch_size"] == rule.reasons["batch_size"]
    assert make_plan(LARGE, {}, replace(budget(12), default=True)) == rule


def test_too_little_memory_says_how_much_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"at least 10\.8 MB.*\(16, 16, 16\)"):
        make_plan(LARGE, {}, budget(5))


def test_fields_that_depend_on_the_patch_follow_it() -> None:
    ct = measured(replace(case((256, 256, 40), (1, 1, 2.5)), labels_in_air=False))
    assert make_plan(ct, {}, budget(1000)).air_below == -500
    assert make_plan(ct, {}, budget(11.5)).air_below is None  # thinner than the cubes that were searched
