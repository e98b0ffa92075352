"""Timing of nested stages: time counts for the innermost one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from volseg.inference.timing import StageTimer


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by one that the test sets."""
    current = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: current[0])
    return current


def test_an_inner_stage_pauses_the_outer_one(now: list[float]) -> None:
    timer = StageTimer()
    with timer.stage("outer"):
        now[0] += 1
        with timer.stage("inner"):
            now[0] += 10
        now[0] += 2
    now[0] += 100
    with timer.stage("inner"):
        now[0] += 5
    assert timer.seconds == {"outer": 3, "inner": 15}


def test_producing_items_counts_and_using_them_does_not(now: list[float]) -> None:
    def items() -> Iterator[int]:
        for item in range(3):
            now[0] += 10
            yield item

    timer = StageTimer()
    with timer.stage("use"):
        for _ in timer.each("draw", items()):
            now[0] += 1
    assert timer.seconds == {"use": 3, "draw": 30}


def test_an_error_ends_the_stage(now: list[float]) -> None:
    timer = StageTimer()

    def fail() -> None:
        with timer.stage("broken"):
            now[0] += 1
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    now[0] += 7
    with timer.stage("next"):
        now[0] += 2
    assert timer.seconds == {"broken": 1, "next": 2}
