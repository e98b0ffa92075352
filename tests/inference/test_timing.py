"""Time is charged to the innermost stage."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from volseg.inference.timing import StageClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is set by hand."""
    current = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: current[0])
    return current


def test_an_inner_stage_pauses_the_outer_one(now: list[float]) -> None:
    clock = StageClock()
    with clock.stage("outer"):
        now[0] += 1
        with clock.stage("inner"):
            now[0] += 10
        now[0] += 2
    now[0] += 100
    with clock.stage("inner"):
        now[0] += 5
    assert clock.seconds == {"outer": 3, "inner": 15}


def test_drawing_items_is_charged_and_using_them_is_not(now: list[float]) -> None:
    def items() -> Iterator[int]:
        for item in range(3):
            now[0] += 10
            yield item

    clock = StageClock()
    with clock.stage("use"):
        for _ in clock.each("draw", items()):
            now[0] += 1
    assert clock.seconds == {"use": 3, "draw": 30}


def test_an_error_ends_the_stage(now: list[float]) -> None:
    clock = StageClock()

    def fail() -> None:
        with clock.stage("broken"):
            now[0] += 1
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    now[0] += 7
    with clock.stage("next"):
        now[0] += 2
    assert clock.seconds == {"broken": 1, "next": 2}
