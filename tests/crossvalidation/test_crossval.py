"""Cross-validation: which fold predicts a case, what continues, what is refused, and the ensemble."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import volseg
from tests.made.datasets import write_small_dataset
from volseg.cli.main import main
from volseg.config.load import load_config
from volseg.crossvalidation.results import store_choice
from volseg.crossvalidation.setup import prepare_folds
from volseg.errors import ConfigError, DataError, ModelFileError, OutputError
from volseg.evaluation.choose_postprocessing import Choice
from volseg.io.labels import LabelMap
from volseg.io.locks import folder_lock
from volseg.io.model_file import read_metadata, read_model
from volseg.io.model_folder import model_files_of
from volseg.postprocessing.rules import Postprocessing

pytestmark = pytest.mark.usefixtures("no_pictures")

SETTINGS = ["model.encoder=identity", "model.weights=random", "model.features=4", "train.batch_size=1", "device=cpu"]
SETTINGS += ["plan.patch_size=[8,16,16]", "plan.token_stride=8", "data.workers=0", "train.validate_cases=0"]
SETTINGS += ["train.max_steps=2", "train.checkpoint_every=1", "train.lr=0.01"]
FOLDS = [{"train": ["c0", "c1"], "val": ["c2", "c3"]}, {"train": ["c2", "c3"], "val": ["c0", "c1"]}]


class KilledError(BaseException):
    """Ends a process without any step in order."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with made data: four cases in two folds."""
    folder = tmp_path_factory.mktemp("made")
    root = write_small_dataset(folder / "data", cases=4)
    (folder / "folds.json").write_text(json.dumps(FOLDS))
    (folder / "config.yaml").write_text(f"data:\n  root: {root}\n  splits: {folder / 'folds.json'}\n")
    return folder / "config.yaml"


def command(config: Path, output: Path, *further: str) -> list[str]:
    return ["crossval", "--config", str(config), f"output={output}", *SETTINGS, *further]


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation by the commands that ``--jobs`` prints."""
    folder, printed = tmp_path_factory.mktemp("runs") / "jobs", io.StringIO()
    with redirect_stdout(printed):
        assert main(command(config, folder, "--jobs")) == 0
    *jobs, collect = printed.getvalue().splitlines()
    assert jobs == [f"volseg train --resume {folder}/fold_{number}" for number in (0, 1)]
    assert not (folder / "fold_0" / "checkpoint").exists()
    for line in (jobs[1], jobs[0], collect):
        assert main(shlex.split(line)[1:]) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same cross-validation in a folder that a test may change."""
    return shutil.copytree(finished, tmp_path / "copy", symlinks=True)


def test_every_case_is_predicted_by_the_fold_that_held_it_out(finished: Path) -> None:
    masks = sorted((finished / "validation" / "masks").iterdir())
    assert [mask.name for mask in masks] == [f"c{number}.nii.gz" for number in range(4)]
    for mask in masks:
        run = mask.resolve().parents[2]
        split = json.loads((run / "splits.json").read_text())
        assert mask.name.partition(".")[0] in split["val"]
        assert mask.name.partition(".")[0] not in split["train"]
    plans = [(finished / f"fold_{number}" / "plan.json").read_bytes() for number in (0, 1)]
    assert plans[0] == plans[1]
    assert (finished.parent / "preprocessed").is_dir()  # one cache
    assert not (finished / "preprocessed").exists()
    scores = json.loads((finished / "validation" / "folds.json").read_text())
    means = [scores[name]["out of fold"]["dice"]["mean"] for name in ("0", "1", "all")]
    assert means[2] == pytest.approx((means[0] + means[1]) / 2)
    assert scores["all"]["out of fold"]["dice"]["n_cases"] == 4
    low, high = scores["all"]["out of fold"]["dice"]["ci95"]
    assert low <= means[2] <= high


def test_the_ensemble_is_the_mean_of_the_probabilities_of_its_folds(finished: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(5).normal(size=(16, 16, 8)).astype(np.float32)
    parts = []
    for number, model in enumerate((finished, finished / "fold_0", finished / "fold_1")):
        predictor = volseg.load(model, "cpu")
        file = tmp_path / f"{number}.nii"
        labels = predictor.segment(predictor.read(image, np.eye(4)), probabilities=file).mask.labels
        parts.append((labels, np.asarray(nibabel.load(file).dataobj)))
    mean = (parts[1][1] + parts[2][1]) / 2
    np.testing.assert_allclose(parts[0][1], mean, atol=1e-6)
    clear = np.abs(mean[..., 0] - 0.5) > 1e-6
    np.testing.assert_array_equal(parts[0][0][clear], (mean[..., 1] > 0.5)[clear])
    assert np.abs(parts[1][1] - parts[2][1]).max() > 1e-3  # the folds differ


def test_a_killed_fold_resumes_and_a_finished_one_is_kept(copy: Path, config: Path, finished: Path) -> None:
    def kill(stage: str, done: int, _: int | None) -> None:
        if (stage, done) == ("fold 1: train", 1):
            raise KilledError

    shutil.rmtree(copy / "fold_1")
    first, overrides = copy / "fold_0" / "model.safetensors", [f"output={copy}", *SETTINGS]
    before = first.stat().st_mtime_ns
    with pytest.raises(KilledError):
        volseg.crossval(config, overrides, progress=kill)
    assert not (copy / "fold_1" / "model.safetensors").exists()
    result = volseg.crossval(config, overrides)
    assert (result.folds, result.exit_code, result.failed) == ((0, 1), 0, ())
    assert first.stat().st_mtime_ns == before
    assert len(json.loads((copy / "fold_1" / "provenance.json").read_text())["resumed"]) == 1
    ours, _ = read_model(copy / "fold_1" / "model.safetensors")
    theirs, _ = read_model(finished / "fold_1" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_unfinished_fold_is_named_unless_others_are_selected(
    copy: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "fold_1" / "model.safetensors").unlink()
    assert main(command(config, copy, "--collect")) == 2
    assert "fold 1: training has not finished" in capsys.readouterr().err
    with pytest.raises(ModelFileError, match="fold_1"):
        volseg.load(copy)
    assert main(command(config, copy, "--collect", "--folds", "0")) == 0
    assert model_files_of(copy) == [copy / "fold_0" / "model.safetensors"]
    assert main(command(config, copy, "--folds", "2")) == 2
    assert "there are no such folds" in capsys.readouterr().err


def test_masks_of_another_model_are_not_taken(
    copy: Path, finished: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "fold_0" / "model.safetensors", copy / "fold_1" / "model.safetensors")
    assert main(command(config, copy, "--collect")) == 2
    assert "fold 1: 2 of 2 held-out cases are not predicted with its model" in capsys.readouterr().err


def test_what_differs_from_the_beginning_is_refused(
    copy: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(config, copy, "train.lr=0.5")) == 2
    assert "train.lr: the run has 0.01, given 0.5" in capsys.readouterr().err
    other = tmp_path / "folds.json"
    other.write_text(json.dumps(FOLDS[::-1]))
    with pytest.raises(DataError, match="other cases in folds 0, 1"):
        volseg.crossval(config, [f"output={copy}", *SETTINGS, f"data.splits={other}"])
    assert main(command(config, copy, "data.fold=1")) == 2
    assert "--folds selects folds" in capsys.readouterr().err
    inputs = copy / "fold_1" / "inputs.json"
    inputs.write_text(inputs.read_text().replace('"plan_sha256": "', '"plan_sha256": "0'))
    assert main(command(config, copy, "--collect")) == 2
    assert "inputs.json of fold 1 differs from that of fold 0: plan_sha256" in capsys.readouterr().err


def test_jobs_that_are_replaced_are_named(config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No fold has begun, so nothing is lost, but jobs that wait would train with the new settings."""
    splits, folder = tmp_path / "folds.json", tmp_path / "cv"
    splits.write_text(json.dumps(FOLDS))
    jobs = command(config, folder, f"data.splits={splits}", "--jobs")
    for _ in range(2):
        assert main(jobs) == 0
    assert "no fold has begun" not in caplog.text
    splits.write_text(json.dumps([FOLDS[0], {"train": ["c2"], "val": ["c0", "c1"]}]))
    assert main([*jobs, "train.lr=0.02"]) == 0
    assert "printed: train.lr: the run has 0.01, given 0.02; the splits" in caplog.text
    assert "in no part of fold 1: 1 case: c3" in caplog.text


def test_folders_of_others_are_left_as_they_are(config: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "plan.json").write_text("mine")
    assert main(command(config, tmp_path / "notes")) == 2
    assert [path.read_text() for path in (tmp_path / "notes").iterdir()] == ["mine"]
    (copy / "validation" / "masks" / "notes.txt").write_text("mine")
    assert main(command(config, copy, "--collect")) == 2
    assert (copy / "validation" / "masks" / "notes.txt").read_text() == "mine"
    with folder_lock(copy, "volseg crossval"), pytest.raises(OutputError, match="another process"):
        volseg.crossval(config, [f"output={copy}", *SETTINGS], collect=True)


def test_a_fold_that_fails_does_not_stop_the_others(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(config, tmp_path / "cv", "train.lr=1e30", "train.max_steps=8")) == 2
    error = capsys.readouterr().err
    assert "error: 2 of 2 folds could not be trained" in error
    assert all(f"fold {number}: loss or gradient was not finite" in error for number in (0, 1))


def test_chosen_postprocessing_is_stored_in_all_models(copy: Path, config: Path) -> None:
    settings = load_config(config, [f"output={copy}", *SETTINGS])
    chosen = Postprocessing(largest_component=("organ",), min_volume_ml={"organ": 0.5})
    for _ in range(2):  # the second time nothing changes
        with prepare_folds(settings, None, collect=True) as crossval:
            store_choice(crossval, Choice(postprocessing=chosen, cases=8))
            assert [fold.lacks() for fold in crossval.folds] == [None, None]  # their masks are still theirs
    assert volseg.load(copy, "cpu").postprocessing == chosen
    for file in model_files_of(copy):
        assert Postprocessing.from_dict(read_metadata(file)["postprocessing"], LabelMap({"organ": (1,)})) == chosen
    with prepare_folds(settings, None, collect=True) as crossval:
        store_choice(crossval, Choice(postprocessing=Postprocessing(), cases=8))
    assert volseg.load(copy, "cpu").postprocessing == Postprocessing()


def test_folds_that_do_not_go_together_are_no_ensemble(copy: Path, config: Path, tmp_path: Path) -> None:
    """A cross-validation that was extended in part: one fold is longer, and has no chosen postprocessing yet."""
    settings = load_config(config, [f"output={copy}", *SETTINGS])
    with prepare_folds(settings, None, collect=True) as crossval:
        store_choice(crossval, Choice(postprocessing=Postprocessing(largest_component=("organ",)), cases=8))
    scan = next((config.parent / "data").glob("images*/c0*"))
    folds = [copy / "fold_0", copy / "fold_1"]
    volseg.predict(folds, scan, tmp_path / "one", device="cpu")
    assert volseg.predict(folds[::-1], scan, tmp_path / "one", device="cpu").count("skipped") == 1
    assert main(["train", "--resume", str(folds[0]), "train.max_steps=3"]) == 0
    with pytest.raises(ConfigError, match=r"different ends(.|\n)*fold_0: train.max_steps=3; fold_1: train.max_steps=2"):
        volseg.load(copy, "cpu")
    with pytest.raises(ConfigError, match="different postprocessing"):
        volseg.predict(folds, scan, tmp_path / "two", device="cpu")
    assert not (tmp_path / "two").exists()
    assert volseg.predict(folds, scan, tmp_path / "two", device="cpu", postprocess=[]).count("done") == 1
