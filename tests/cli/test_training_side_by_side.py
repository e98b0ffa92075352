"""Two trainings at once: the second one in a run folder is refused. Variables like those of torchrun are ignored."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.made.datasets import write_dataset
from volseg.cli.main import main
from volseg.io.locks import LOCK_NAME, folder_lock

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    label[1, 1, 1] = 1
    data = write_dataset(tmp_path / "data", [label.astype(np.float32)] * 2, [label] * 2, names=("background", "organ"))
    settings = [f"data.root={data}", f"output={tmp_path / 'run'}", "model.encoder=identity", "train.max_steps=1"]
    return ["train", "--config", "demo", *settings, "device=cpu"]


@pytest.mark.parametrize("extra", [[], ["--resume"]])
def test_a_second_training_in_a_run_folder_is_refused_and_names_the_first(
    extra: list[str], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    with folder_lock(tmp_path / "run", "volseg train"):
        assert main([*arguments, *extra]) == 2
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_NAME]
    error = capsys.readouterr().err
    assert "another process is writing to this folder" in error
    assert f"volseg train in process {os.getpid()} on " in error
    assert list((tmp_path / "run").iterdir()) == []
    assert not (tmp_path / "preprocessed").exists()


def test_variables_without_a_rendezvous_are_ignored(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, TORCHRUN[name])
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert main([*arguments, f"data.root={tmp_path / 'none'}"]) == 2  # a later check than that of torchrun
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error
