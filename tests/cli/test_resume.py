"""Resuming through the command: a run goes on with its own settings, or is left as it is."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from tests.made.datasets import write_small_dataset
from volseg.cli.main import main
from volseg.config.load import load_config
from volseg.io.model_file import read_metadata

pytestmark = pytest.mark.usefixtures("no_pictures")

SETTINGS = ["model.encoder=identity", "model.weights=random", "model.features=4", "train.batch_size=1", "device=cpu"]
SETTINGS += ["plan.patch_size=[8,16,16]", "plan.token_stride=8", "data.workers=0", "train.max_steps=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    assert main(["train", f"data.root={data}", f"output={folder}", *SETTINGS, "data.fold=all", "--resume"]) == 0
    return folder


def test_a_run_goes_on_by_its_folder_alone_and_records_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not (run / "validation").exists()  # no case is held out
    assert read_metadata(run / "model.safetensors")["training"]["step"] == 1
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert main(["train", "--resume", str(run), "data.fold=0", "train.lr=0.1", "train.max_steps=3"]) == 2
    error = capsys.readouterr().err
    assert "data.fold: the run has all, given 0" in error
    assert "train.lr: the run has 0.003, given 0.1" in error
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    moved = run.rename(run.parent / "moved")
    assert main(["train", "--resume", str(moved), "train.max_steps=2"]) == 0
    assert read_metadata(moved / "model.safetensors")["training"]["step"] == 2
    assert load_config(moved / "config.yaml").train.max_steps == 2
    (resumed,) = json.loads((moved / "provenance.json").read_text())["resumed"]
    assert resumed["changes"] == {"output": [str(run), str(moved)], "train.max_steps": [1, 2]}
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace("lr: 0.003", "lr: 0.002"))
    assert main(["train", "--resume", str(moved)]) == 2  # the checkpoint knows better
    assert "train.lr: the run has 0.003, given 0.002" in capsys.readouterr().err


def test_a_finished_run_is_left_as_it_is(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what is missing is done again."""
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    assert main(["train", f"data.root={data}", f"output={run}", *SETTINGS, "train.validate_cases=0"]) == 0
    capsys.readouterr()

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    before = times()
    assert main(["train", "--resume", str(run), "data.workers=1"]) == 0
    assert "this run is finished already; its scores are in" in caplog.text
    assert capsys.readouterr().out == f"model: {run / 'model.safetensors'}\n"
    assert times() == before
    (run / "validation" / "scores" / "scores.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "validation" / "scores" / "scores.json").exists()
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:-9])
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "model.safetensors").stat().st_size >= len(content)


def test_without_a_configuration_or_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for command in ("train", "crossval", "describe"):
        assert main([command, "device=cpu"]) == 2
        assert "the configuration cpu is taken" in caplog.text
        assert "data.root" in capsys.readouterr().err
        caplog.clear()
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "there is no run in this folder" in capsys.readouterr().err


def test_a_fold_that_does_not_exist_is_said_before_the_cases_are_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    scan = copy / "imagesTr" / "c0.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-500])  # an error of reading
    command = ["train", f"data.root={copy}", f"output={tmp_path / 'run'}", *SETTINGS, "--resume"]
    for fold, problem in (("data.fold=5", "there is no such fold"), ("data.fold=0", "c0.nii.gz")):
        assert main([*command, fold]) == 2
        assert problem in capsys.readouterr().err
