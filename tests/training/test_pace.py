"""Signs of life: lines with speed and remaining time, and checkpoints by time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from volseg.config.schema import TrainConfig
from volseg.training import run_log
from volseg.training.checkpoint import RunProgress
from volseg.training.pace import Pace, duration
from volseg.training.run_log import RunLog, read_metrics
from volseg.training.schedule import Budget
from volseg.training.steps import is_checkpoint_due

ROW = {"step": 7, "loss": 0.5, "lr": 0.01, "skipped": 0, "elapsed_s": 90.0}


def test_a_run_of_steps() -> None:
    """From step 100 at 50 s on, ten samples a second and 40 s of validation in between."""
    pace = Pace(Budget(max_steps=200, max_seconds=None), patches_per_step=5, step=100, elapsed_s=50)
    assert pace.text(100, 50) == "50%"
    assert pace.text(120, 60) == "60%, 10.0 samples/s, 40 s left"  # half a second a step
    pace.skip(40)
    assert pace.text(140, 110) == "70%, 10.0 samples/s, 90 s left"  # 60 s for 40 steps, the validation included
    assert pace.text(200, 140).endswith("0 s left")


def test_a_run_of_minutes_knows_its_end() -> None:
    pace = Pace(Budget(max_steps=None, max_seconds=600), patches_per_step=2, step=0, elapsed_s=0)
    assert pace.text(30, 60) == "10%, 2.0 s per step, about 300 steps in all, 9.0 min left"
    assert pace.text(30, 700).endswith("0 s left")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 99.4, 100, 5999, 6000)] == [
        "0 s",
        "99 s",
        "1.7 min",
        "100.0 min",
        "1.7 h",
    ]


def test_a_line_between_the_recorded_steps_changes_no_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(tmp_path, resume_step=0)
    assert not log.is_silent()
    monkeypatch.setattr(run_log, "SILENCE_S", 0)
    assert log.is_silent()
    with caplog.at_level(logging.INFO):
        log.running(ROW, "16%, 2.0 samples/s, 40 s left")
        log.validating(3, 8)
    assert caplog.messages == [
        "step 7: loss 0.5000, lr 1.00e-02, 90 s, 16%, 2.0 samples/s, 40 s left",
        "validation: 3 of 8 cases",
    ]
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    log.train(ROW, "16%")
    assert read_metrics(tmp_path / "metrics.jsonl") == [ROW]


def test_checkpoints_by_steps_and_by_time() -> None:
    settings = TrainConfig(checkpoint_every=10, checkpoint_minutes=2)
    cases = ((10, 299), (9, 181), (9, 180))  # step, and seconds at the last checkpoint
    due = [is_checkpoint_due(settings, RunProgress(step, 300.0), saved_s) for step, saved_s in cases]
    assert due == [True, False, True]
    never = TrainConfig(checkpoint_every=10, checkpoint_minutes=None)
    assert not is_checkpoint_due(never, RunProgress(9, 1e6), 0)
