"""The main job through the commands a user types, on generated scans."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import volseg
from tests.made.datasets import write_small_dataset
from volseg.cli.main import main
from volseg.io.atomic import atomic_folder
from volseg.io.model_file import read_model
from volseg.training import experiment

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.encoder=tiny", "model.features=4", "train.batch_size=1", "data.workers=0", "device=cpu"]
SMALL += ["plan.patch_size=[8,16,16]", "train.validate_every=4", "train.validate_cases=1", "train.checkpoint_every=2"]


def train(data: Path, output: Path, *extra: str) -> int:
    return main(["train", "--config", "demo", f"data.root={data}", f"output={output}", *SMALL, *extra])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    assert main(["phantom", str(folder), "--train", "3", "--test", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "a"
    assert train(data, output, "train.max_steps=4", "plan.patch_size=[8,48,48]") == 0
    return output


def test_a_run_folder_holds_what_it_should(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "plan.json",
        "plan.png",
        "splits.json",
        "findings.json",
        "provenance.json",
        "metrics.jsonl",
        "progress.png",
    }
    assert names >= {"checkpoint", "model.safetensors", "validation"}
    split = json.loads((run / "splits.json").read_text())
    assert len(split["train"]) == 2
    assert len(split["val"]) == 1
    scores = run / "validation" / "scores"
    with (scores / "cases.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == set(split["val"])
    _, metadata = read_model(run / "model.safetensors")
    assert metadata["training"]["step"] == 4
    assert metadata["plan"]["patch_size"] == [8, 48, 48]
    assert metadata["plan"]["cases"] == []
    assert len(json.loads((run / "plan.json").read_text())["cases"]) == 3


def test_a_second_run_into_the_same_folder_is_refused(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(data, run, "train.max_steps=4") == 2
    assert "--resume" in capsys.readouterr().err


def test_a_run_that_was_refused_may_be_given_again(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What no data could hint is said before anything is read; later refusals leave a folder that is taken again."""
    weights = tmp_path / "other.pth"
    torch.save({"cls_token": torch.zeros(2)}, weights)
    late, early = [f"model.weights={weights}"], ["model.weights=null"]
    no_end, no_field = ["train.max_steps=null", "train.max_minutes=null"], ["plan.token_strid=8"]
    for wrong, started in ((early, False), (no_end, False), (no_field, False), (late, True)):
        assert train(small_data, tmp_path / "run", "train.max_steps=4", *wrong) == 2
        assert (tmp_path / "run" / "plan.json").exists() == started
    assert "cls_token is (2,)" in capsys.readouterr().err
    assert train(small_data, tmp_path / "run", "train.max_steps=1") == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_is_named_by_a_worker_too(
    small_data: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    intact = experiment.cache_dataset

    def damage_later(*arguments: Any, **settings: Any) -> Any:
        cases = intact(*arguments, **settings)  # compares the files with their checksums
        for case in cases:
            (case.folder / "image.npy").write_bytes((case.folder / "image.npy").read_bytes()[:-4])
        return cases

    monkeypatch.setattr(experiment, "cache_dataset", damage_later)
    cache = f"data.cache={tmp_path / 'cache'}"
    assert train(small_data, tmp_path / "run", "train.max_steps=1", cache, f"data.workers={workers}") == 2
    error = capsys.readouterr().err
    assert "image.npy" in error
    assert "Traceback" not in error


def test_a_job_that_is_told_to_stop_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_args: object) -> int:
        with atomic_folder(tmp_path / "result") as folder:
            (folder / "part").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr("volseg.cli.plan.run", stopped)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["plan", "data"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_ends_like_an_unbroken_one(small_data: Path, tmp_path: Path) -> None:
    """The run is stopped after step 2, with its checkpoint written and its model not, as a killed run would be."""
    whole, restarted = tmp_path / "whole", tmp_path / "restarted"
    assert train(small_data, whole, "train.max_steps=4") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("volseg.training.loop.write_model", _stop)
        patch.setattr("volseg.training.schedule.Budget.progress", lambda self, step, elapsed_s: step / 4 + (step == 2))
        assert train(small_data, restarted, "train.max_steps=4") == 2
    assert train(small_data, restarted, "train.max_steps=4", "--resume") == 0
    expected, _ = read_model(whole / "model.safetensors")
    found, _ = read_model(restarted / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


class StopForTest(Exception):
    """Ends a run at its checkpoint."""


def _stop(*_: object) -> None:
    raise StopForTest


def test_predict_and_evaluate_a_folder(data: Path, run: Path, tmp_path: Path) -> None:
    masks, scores = tmp_path / "masks", tmp_path / "scores"
    script = [sys.executable, str(ROOT / "tools" / "predict.py")]
    arguments = ["--model", run / "model.safetensors", "--input", data / "imagesTs", "--output", masks]
    done = subprocess.run([*script, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for scan in sorted((data / "imagesTs").iterdir()):
        image, mask = nibabel.load(scan), nibabel.load(masks / scan.name)
        assert mask.shape == image.shape
        assert mask.affine.tobytes() == image.affine.tobytes()
        assert mask.get_data_dtype() == np.uint8
    arguments = ["--pred", masks, "--ref", data / "labelsTs", "--dataset", data / "dataset.json", "--out", scores]
    assert main(["evaluate", *map(str, arguments)]) == 0
    assert {"cases.csv", "scores.json", "scores.md"} <= {path.name for path in scores.iterdir()}


def test_the_python_interface_gives_the_same_mask(data: Path, run: Path) -> None:
    predictor = volseg.load(run / "model.safetensors", device="cpu")
    scan = sorted((data / "imagesTs").iterdir())[0]
    from_file = predictor.predict(scan)
    image = nibabel.load(scan)
    from_array = predictor.predict(np.asarray(image.dataobj), image.affine)
    assert np.array_equal(from_file.labels, from_array.labels)
    assert from_file.grid == from_array.grid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "configs/none.yaml"], "configuration file does not exist"),
        (["train", "--config", "configs/demo.yaml", "train.lrr=1"], "did you mean 'train.lr'"),
        (["train", "--config", "configs/demo.yaml"], "data.root"),
        (["train", "--config", "configs/demo.yaml", "data.root=/none"], "/none"),
        (["plan", "/none"], "/none"),
        (["predict", "--model", "Makefile", "--input", ".", "--output", "x"], "Makefile"),
        (["evaluate", "--pred", "/none", "--ref", "/none", "--out", "x"], "/none"),
    ],
)
def test_what_cannot_be_done_is_said_and_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "/none", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_exception_is_not_taken_for_failed_cases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("volseg.cli.plan.plan_dataset", fail)
    assert main(["plan", "/none"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert "unexpected ZeroDivisionError" in errors


def test_training_does_not_score_masks_of_somebody_else(small_data: Path, tmp_path: Path) -> None:
    """They lie where its own would; the case is not scored, and the exit code says so."""
    reference = sorted((small_data / "labelsTr").glob("*.nii.gz"))
    run = tmp_path / "run"
    assert train(small_data, run, "train.max_steps=1") == 0
    for label in reference:
        mask = run / "validation" / "masks" / label.name
        if mask.exists():
            mask.write_bytes(label.read_bytes())
    (run / "validation" / "scores" / "scores.json").unlink()  # a finished run would be left as it is
    assert train(small_data, run, "train.max_steps=1", "--resume") == 2  # no case is left
    rows = [row.split(",") for row in (run / "validation" / "scores" / "cases.csv").read_text().splitlines()[1:]]
    assert not any(row[4] == "1.0" for row in rows)


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint", "dataset.json", "notes.txt"])
def test_a_new_run_goes_into_an_empty_folder(
    name: str, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    assert train(small_data, tmp_path) == 2
    problem = "there is a run" if name in ("model.safetensors", "checkpoint") else "holds other files"
    assert problem in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_a_plan_replaces_only_a_plan(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(small_data), "--out", str(tmp_path / "plan.json")]) == 0
    assert main(["plan", str(small_data), "--out", str(tmp_path / "plan.json")]) == 0
    (tmp_path / "dataset.json").write_text("{}")
    assert main(["plan", str(small_data), "--out", str(tmp_path / "dataset.json")]) == 2
    assert "is no plan and is not replaced" in capsys.readouterr().err
    assert (tmp_path / "dataset.json").read_text() == "{}"


def test_output_that_cannot_be_written_is_an_error_without_traceback() -> None:
    command = [sys.executable, "-m", "volseg", "settings", "train.lr"]
    for target, code in (("/dev/full", 2), (None, 0)):
        redirect = f"> {target}" if target else ">&-"
        text = f"{shlex.join(command)} {redirect}"
        done = subprocess.run(text, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_evaluation_of_names_that_are_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where a notebook has set a drawing backend that is not installed here."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_none.backend_none")
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    names = [os.fsdecode(b"scan-\xe9.nii.gz"), "b.nii.gz"]
    for folder in ("pred", "ref"):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / folder / "x.nii.gz")
        try:
            for name in names:
                (tmp_path / folder / name).write_bytes((tmp_path / folder / "x.nii.gz").read_bytes())
        except (OSError, UnicodeError):
            pytest.skip("this file system has no such names")
    paths = [str(tmp_path / name) for name in ("pred", "ref", "out")]
    assert main(["evaluate", "--pred", paths[0], "--ref", paths[1], "--out", paths[2]]) == 0
    assert "scan-\\udce9" in (tmp_path / "out" / "report.html").read_text()
