"""Ctrl-C, SIGTERM and torchrun, with real processes: nothing is half written, and a rerun goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import pytest
from torch import nn

from volseg.cli.main import main
from volseg.cli.signals import stops_in_order
from volseg.errors import ConfigError
from volseg.inference.cohort.shard import TorchrunRank, device_of_rank, torchrun_rank
from volseg.io.model_file import save_model
from volseg.planning.plan import Plan

RECORDS = (("records", "jsonl"), ("summary", "json"))
HOLD = """
import sys, time
from contextlib import contextmanager
from pathlib import Path
from volseg.inference import predictor as module
from volseg.io import atomic, nifti

stage, last = sys.argv.pop(1), []
segment = module.Predictor.segment

def hold(seconds):
    print("here", flush=True)
    for _ in range(20 * seconds):  # a signal just before a long sleep would not end it
        time.sleep(0.05)

def segment_second(self, *args, **kwargs):
    last.append(1)
    if len(last) == 2:
        if stage == "network":
            hold(60)
        if stage == "stream":
            with atomic.atomic_file(Path(sys.argv[-1]) / "b_probabilities.nii") as file:
                file.write(b"half of it")
                file.flush()
                hold(60)
    return segment(self, *args, **kwargs)

@contextmanager
def finish_slowly(path):
    with atomic.atomic_file(path) as file:
        yield file
        if stage == "write":  # not closed yet, and still under its temporary name
            hold(3)

module.Predictor.segment, nifti.atomic_file = segment_second, finish_slowly
from volseg.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def arguments(
    tmp_path: Path, make_plan: Callable[..., Plan], build: Callable[..., nn.Module], scan: nibabel.Nifti1Image
) -> list[str]:
    plan = make_plan(spacing_mm=(4.0, 4.0, 4.0))  # few windows
    settings: dict[str, Any] = {"encoder": "identity", "features": 4, "max_features": 8}
    metadata = {"config": {"model": settings}, "plan": plan.to_dict(), "labels": plan.labels}
    save_model(tmp_path / "model.safetensors", build(plan, **settings).state_dict(), metadata)
    (tmp_path / "scans").mkdir()
    for name in "abc":
        nibabel.save(scan, tmp_path / "scans" / f"{name}.nii")
    paths = [tmp_path / "model.safetensors", tmp_path / "scans", tmp_path / "out"]
    model, scans, out = map(str, paths)
    return ["predict", "--device", "cpu", "--model", model, "--input", scans, "--output", out]


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("stage", "number", "code"),
    [("network", signal.SIGINT, 130), ("stream", signal.SIGTERM, 143), ("write", signal.SIGTERM, 143)],
)
def test_a_signal_leaves_whole_files_and_their_records(
    stage: str,
    number: signal.Signals,
    code: int,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Sent while the second case is in the network or streaming, or the first is being written."""
    (tmp_path / "hold.py").write_text(HOLD)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "hold.py"), stage, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # a background job ignores it
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    for _ in range(4 if stage == "write" else 1):  # what is being written takes a while: someone gets impatient
        process.send_signal(number)
        time.sleep(0.3)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == code, errors
    assert "failed" not in errors
    assert "finished cases are kept" in errors
    assert "Traceback" not in errors
    assert entries(tmp_path / "out") == {"a.nii.gz", "records.jsonl", "summary.json"}
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {name: case["status"] for name, case in record["cases"].items()} == {"a": "done"}
    assert main(arguments) == 0
    assert "2 predicted, 1 skipped (up to date), 0 failed" in capsys.readouterr().out
    assert nibabel.load(tmp_path / "out" / "a.nii.gz").get_fdata().shape == (20, 22, 24)


def test_torchrun_shares_out_the_cases(arguments: list[str], tmp_path: Path) -> None:
    """The second process meets a bad case and is done at once; the others' cases are finished all the same."""
    out = tmp_path / "out"
    (tmp_path / "scans" / "a.nii").write_bytes(b"not a scan")
    (tmp_path / "scans" / "c.nii").unlink()
    (tmp_path / "slow.py").write_text(HOLD.replace("len(last) == 2", "len(last) == 1").replace("60", "3"))
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(tmp_path / "slow.py"), "network", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    files = {f"{name}_{rank}_of_2.{kind}" for rank in range(2) for name, kind in RECORDS}
    assert entries(out) == {"b.nii.gz", *files}, done.stderr
    shards = [json.loads((out / f"summary_{rank}_of_2.json").read_text()) for rank in range(2)]
    assert [{name: case["status"] for name, case in shard["cases"].items()} for shard in shards] == [
        {"b": "done"},
        {"a": "failed"},
    ]
    assert "1 predicted, 0 skipped (up to date), 0 failed" in done.stdout


RANK_0 = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_torchrun_and_shard_together_are_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in RANK_0.items():
        monkeypatch.setenv(name, value)
    assert main([*arguments, "--shard", "0/2"]) == 2
    assert "--shard cannot be combined with torchrun" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_stray_variables_are_no_share(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that was not started by torchrun predicts all cases."""
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 0
    assert entries(tmp_path / "out") == {"a.nii.gz", "b.nii.gz", "c.nii.gz", "records.jsonl", "summary.json"}
    assert "without MASTER_ADDR" in caplog.text


def test_ranks_are_read_from_the_environment_of_torchrun() -> None:
    assert torchrun_rank(RANK_0 | {"RANK": "3", "LOCAL_RANK": "1"}) == TorchrunRank((3, 8), 1)
    assert torchrun_rank({"RANK": "3", "WORLD_SIZE": "8"}) is None
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        assert torchrun_rank({name: value for name, value in RANK_0.items() if name != variable}) is None
    for wrong in ({"RANK": "8"}, {"RANK": "-1"}, {"LOCAL_RANK": ""}, {"WORLD_SIZE": "many"}):
        with pytest.raises(ConfigError, match="RANK="):
            torchrun_rank(RANK_0 | wrong)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = TorchrunRank((5, 8), 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [device_of_rank(name, rank) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
    assert device_of_rank("auto", None) == "auto"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_of_rank("auto", rank) == "auto"


def test_signals_that_were_ignored_stay_ignored() -> None:
    """As under nohup; and afterwards everything is as before."""
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stops_in_order("..."):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt), stops_in_order("..."):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
