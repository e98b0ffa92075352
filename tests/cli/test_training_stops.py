"""SIGTERM and Ctrl-C during training: a checkpoint is written, and the resumed run is the uninterrupted one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made.datasets import write_small_dataset
from volseg.cli.main import main
from volseg.io.model_file import read_model
from volseg.training import steps
from volseg.training.checkpoint import load_checkpoint
from volseg.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("no_pictures")

SETTINGS = ["model.encoder=identity", "model.features=4", "train.batch_size=1", "device=cpu", "train.max_steps=6"]
SETTINGS += ["plan.patch_size=[8,16,16]", "train.validate_every=3", "train.validate_cases=1", "data.workers=1"]
SETTINGS += ["train.checkpoint_every=4"]

HOLD = '''
"""Trains, and says when it is in the middle of the fifth step, or of the first validation."""
import sys, time
from volseg.training import loop, state, steps

stage, seconds = sys.argv[1], float(sys.argv[2])
optimizer_step, validate, done = state.WeightAverage.update, loop.validate, []
steps.LOG_EVERY = 2

def hold():
    assert "monai" not in sys.modules  # its import takes longer than all others
    print("here", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)

def held_update(*arguments):  # the optimizer has stepped, the average has not
    done.append(1)
    if stage == "step" and len(done) == 5:
        hold()
    return optimizer_step(*arguments)

def held_validate(*arguments):
    if stage == "validation":
        hold()
    return validate(*arguments)

state.WeightAverage.update, loop.validate = held_update, held_validate
from volseg.cli.main import main
sys.exit(main(sys.argv[3:]))
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("made") / "data")


def arguments(data: Path, output: Path) -> list[str]:
    config = "demo"
    return ["train", "--config", config, f"data.root={data}", f"output={output}", *SETTINGS]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "LOG_EVERY", 2)
        assert main(arguments(data, output)) == 0
    return output


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("elapsed_s", "step_s")} for row in rows]


def start(data: Path, folder: Path, stage: str, seconds: float) -> subprocess.Popen[str]:
    """Start a run in a session of its own and wait until it holds."""
    (folder / "hold.py").write_text(HOLD)
    process = subprocess.Popen(
        [sys.executable, str(folder / "hold.py"), stage, str(seconds), *arguments(data, folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # a background job ignores it
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize(
    ("stage", "number", "code", "step"),
    [("step", signal.SIGTERM, 143, 5), ("validation", signal.SIGINT, 130, 3)],
)
def test_a_stopped_run_resumes_as_if_it_had_not_been_stopped(
    stage: str, number: signal.Signals, code: int, step: int, data: Path, whole: Path, tmp_path: Path
) -> None:
    """The signal reaches all processes, and some senders repeat it, such as ``timeout``."""
    process = start(data, tmp_path, stage, 1.0 if stage == "step" else 60.0)
    os.killpg(process.pid, number)
    if stage == "step":
        time.sleep(0.1)
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert f"the checkpoint of step {step} is written" in errors
    last = errors.splitlines()[-1]
    assert last.endswith(f"stopped: continue with: volseg train --resume {tmp_path / 'run'}")
    resume_and_compare(["train", "--resume", str(tmp_path / "run")], tmp_path / "run", whole)


def resume_and_compare(command: list[str], run: Path, whole: Path) -> None:
    """Resume a run and compare its log and its model with those of the uninterrupted one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "LOG_EVERY", 2)
        assert main(command) == 0
    assert metrics(run) == metrics(whole)
    expected, _ = read_model(whole / "model.safetensors")
    found, _ = read_model(run / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected | found)


@pytest.mark.parametrize("missing", [False, True], ids=["damaged", "missing"])
def test_a_run_falls_back_to_the_checkpoint_before_and_ends_the_same(
    missing: bool, data: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the lines after that checkpoint already; they are dropped and written again."""
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "model.safetensors").unlink()  # it would be finished
    last = run / "checkpoint" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 16
    last.unlink() if missing else last.write_bytes(content)
    resume_and_compare([*arguments(data, run), "--resume"], run, whole)
    assert "resuming from previous.pt at step 4" in caplog.text
    assert {path.name for path in last.parent.iterdir()} == {"last.pt", "previous.pt"}


def test_a_second_signal_ends_at_once_and_saves_no_half_step(data: Path, tmp_path: Path) -> None:
    process = start(data, tmp_path, "step", 60.0)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143, errors
    assert load_checkpoint(tmp_path / "run" / "checkpoint").progress.step == 4
    assert "continue with" in errors.splitlines()[-1]


def test_a_worker_that_dies_is_an_error_that_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = TrainingState.step

    def killed(*given: Any, **named: Any) -> Any:
        for worker in active_children():
            worker.kill()
            worker.join()
        return step(*given, **named)

    monkeypatch.setattr(TrainingState, "step", killed)
    assert main(arguments(data, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "a worker process that loads patches died" in error
    assert "hint: use fewer data.workers" in error
    assert "Traceback" not in error
