"""What can be watched while a run trains: the picture of its numbers, slices over time, trackers, and an early end."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from tests.made.prepared_cases import made_plan, write_case
from volseg.config.load import load_config
from volseg.config.schema import Config, DataConfig, TrainConfig
from volseg.errors import ConfigError, MissingExtraError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask
from volseg.io.cases import Case
from volseg.io.datasets import Dataset as ScanDataset
from volseg.io.model_file import read_metadata
from volseg.training.experiment import Experiment
from volseg.training.loggers import check_logger, open_logger, tracked_numbers
from volseg.training.loop import WEIGHTS_SELECTED, train
from volseg.training.over_time import STORE, ValidationSlices, over_time_figure, shown_steps
from volseg.training.pace import Pace
from volseg.training.progress_picture import progress_figure
from volseg.training.run_log import RunLog, read_metrics
from volseg.training.schedule import Budget
from volseg.training.steps import LENGTH_SELECTED


def validation(step: int, dice: float, cases: int = 2, **by_class: float) -> dict[str, Any]:
    numbers = {"val_dice": dice, "val_hd95": 3.0, "val_dice_by_class": by_class, "val_cases": cases}
    return {"step": step, **numbers, "elapsed_s": 3.0}


def test_the_picture_has_a_line_for_each_class_and_one_for_the_time_of_a_step() -> None:
    steps = [
        {"step": 20, "loss": 1.0, "lr": 0.1},  # of an earlier version
        {"step": 40, "loss": 0.5, "lr": 0.2, "step_s": 0.25},
    ]
    rows = [*steps, validation(20, 0.4, liver=0.5, kidney=0.3), validation(40, 0.6, liver=0.6)]
    loss, dice, lr, seconds = progress_figure(rows).axes
    assert loss.lines[0].get_xydata().tolist() == [[20, 1.0], [40, 0.5]]
    assert {line.get_label(): line.get_ydata()[0] for line in dice.lines} == {"liver": 0.5, "kidney": 0.3, "mean": 0.4}
    assert np.isnan(dice.lines[1].get_ydata()[1])
    assert [text.get_text() for text in dice.get_legend().get_texts()] == ["liver", "kidney", "mean"]
    assert lr.lines[0].get_ydata().tolist() == [0.1, 0.2]
    assert seconds.lines[0].get_xydata().tolist() == [[40, 0.25]]
    many = progress_figure([validation(20, 0.5, **{f"c{number}": 0.1 for number in range(40)})])
    assert many.axes[1].get_legend() is None
    assert len(many.axes[1].lines) == 41


def test_the_time_of_a_step_leaves_validations_out() -> None:
    pace = Pace(Budget.from_config(TrainConfig(max_steps=100)), 2, 0, 0.0)
    pace.skip(6.0)
    pace.text(4, 8.0)
    assert pace.step_s == 0.5
    pace.text(4, 9.0)
    assert pace.step_s is None


def test_validations_without_improvement_are_counted(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, writes=False)
    assert log.without_improvement() == 0
    for step, dice, count in ((1, 0.3, 0), (2, 0.5, 0), (3, 0.5, 1), (4, float("nan"), 2), (5, 0.4, 3), (6, 0.6, 0)):
        log.validation(validation(step, dice))
        assert log.without_improvement() == count, step
    log.validation(validation(7, 0.1, cases=5))  # other cases start anew
    assert log.without_improvement() == 0


def mask(labels: np.ndarray) -> Mask:
    return Mask(labels, Grid(labels.shape, np.diag([1.0, 1.0, 3.0, 1.0])))


def test_the_slice_with_most_labels_is_kept_over_time_and_by_a_resumed_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = np.zeros((6, 5, 4), np.uint8)
    reference[1:4, 2:4, 2] = 1
    reference[5, 4, 0] = 2
    image = rng.normal(size=reference.shape).astype(np.float32)
    cases = [write_case(tmp_path, f"c{number}", image, reference, np.diag([1, 1, 3, 1])) for number in range(4)]

    def validate(step: int) -> ValidationSlices:
        slices = ValidationSlices(tmp_path / "validation", step, "SPL")
        for case in cases:
            predicted = np.full_like(reference, step)
            predicted[0, 0, :] = 0
            slices.show(case, mask(reference), mask(predicted))
        slices.write()
        return slices

    for step in (10, 20):
        slices = validate(step)
    assert list(slices.cases) == ["c0", "c1", "c2"]
    first = slices.cases["c0"]
    # rows run backwards and columns to the left: both reversed, transposed
    np.testing.assert_array_equal(first.image, image[::-1, ::-1, 2].T)
    np.testing.assert_array_equal(first.reference, reference[::-1, ::-1, 2].T)
    assert {step: int(values.max()) for step, values in first.masks.items()} == {10: 10, 20: 20}
    assert first.masks[10][-1, -1] == 0
    assert first.aspect == 1.0
    again = validate(20)  # resumed before step 20
    assert list(again.cases["c0"].masks) == [10, 20]
    figure = over_time_figure(again.cases)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["c0", "reference", "step 10", "step 20"]
    (tmp_path / "validation" / STORE).write_bytes(b"damaged")
    assert list(validate(40).cases["c0"].masks) == [40]


def test_at_most_eight_validations_are_shown_with_the_first_and_the_last() -> None:
    assert shown_steps([30, 10, 20]) == [10, 20, 30]
    many = shown_steps(range(0, 1000, 10))
    assert (len(many), many[0], many[-1]) == (8, 0, 990)


def test_tensorboard_gets_the_rows(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = Config(train=TrainConfig(max_steps=1, logger="tensorboard"))
    log = RunLog(tmp_path, 0, tracker=open_logger(config, tmp_path))
    log.train({"step": 20, "loss": 0.75, "lr": 0.1, "skipped": 0, "elapsed_s": 2.0}, "50%")
    log.validation(validation(40, 0.5, liver=0.25))
    log.close()
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(20, 0.75)]
    assert [(event.step, event.value) for event in read.Scalars("val_dice_by_class/liver")] == [(40, 0.25)]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


class StubLogger:
    """The part of Lightning's interface of loggers that a run uses."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.calls = settings, []

    @property
    def experiment(self) -> None:
        if "refused" in self.settings.values():
            raise RuntimeError("log in first")

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append((step, metrics))

    def finalize(self, status: str) -> None:
        self.calls.append(status)


def stub_module(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = ModuleType("pytorch_lightning.loggers")
    setattr(loggers, kind, StubLogger)
    for module in (ModuleType(name), ModuleType("pytorch_lightning"), loggers):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_what_a_tracker_refuses_is_an_error_of_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_module("wandb", "WandbLogger", monkeypatch)
    with pytest.raises(ConfigError, match=r"train\.logger=wandb cannot be opened(.|\n)*log in first"):
        open_logger(Config(train=TrainConfig(max_steps=1, logger="wandb")), tmp_path / "refused")


@pytest.mark.parametrize(("name", "kind"), [("mlflow", "MLFlowLogger"), ("wandb", "WandbLogger")])
def test_other_trackers_get_the_rows_through_lightnings_interface(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_module(name, kind, monkeypatch)
    tracker: Any = open_logger(Config(train=TrainConfig(max_steps=1, logger=name)), tmp_path / "run")
    log = RunLog(tmp_path, 0, tracker=tracker)
    log.validation(validation(40, 0.5, liver=0.25))
    log.close()
    assert "run" in tracker.settings.values()
    if name == "mlflow":  # MLflow 3 refuses a folder of files
        assert tracker.settings["tracking_uri"] == f"sqlite:///{tmp_path}/run/mlflow/mlflow.db"
    (step, numbers), status = tracker.calls
    assert (step, numbers["val_dice"], numbers["val_dice_by_class/liver"], status) == (40, 0.5, 0.25, "success")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_tracker_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"train\.logger={name} needs(.|\n)*volseg\[{name}\]"):
        check_logger(name)
    check_logger(None)
    assert tracked_numbers({"step": 1, "a": 2, "text": "no", "b": {"c": 0.5}}) == {"a": 2, "b/c": 0.5}


def test_settings_that_need_validations_are_refused_without() -> None:
    with pytest.raises(ConfigError, match=r"train\.stop_after needs validations"):
        TrainConfig(stop_after=2, validate_cases=0)
    for train_config in (TrainConfig(stop_after=2), TrainConfig(keep_best=True)):
        with pytest.raises(ConfigError, match=r"needs held-out cases(.|\n)*or a fold"):
            Config(data=DataConfig(fold="all"), train=train_config)


class Patches(Dataset[dict[str, Any]]):
    """Noise."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(index))
        return {"image": image, "label": (image[0, 1:5] > 0).long(), "case": "c"}


def test_a_run_ends_after_validations_without_improvement_and_its_files_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reference = np.zeros((10, 10, 6), np.uint8)
    reference[2:6, 2:6, 2:4] = 1
    image = np.where(reference, 150, 0).astype(np.int16)
    case: Case = write_case(tmp_path / "data", "held-out", image, reference)
    model = ["model.encoder=identity", "model.features=4", "model.max_features=8", "device=cpu", "precision=32"]
    length = ["train.max_steps=50", "train.batch_size=1", "data.workers=0", "train.lr=1e-9", "train.keep_best=true"]
    config = load_config(None, [*model, *length, "train.validate_every=2", "train.stop_after=2"])
    experiment = Experiment(config, tmp_path, ScanDataset.__new__(ScanDataset), made_plan(), (), (case,))
    monkeypatch.setattr("volseg.training.loop.training_samples", lambda *_: Patches())
    monkeypatch.setattr("volseg.training.loop.write_provenance", lambda *_: {})
    with caplog.at_level(logging.INFO):
        file = train(experiment)
    training = read_metadata(file)["training"]
    assert training["step"] < 50
    validated = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "val_dice" in row]
    assert validated == list(range(2, training["step"] + 1, 2))
    assert training["selection"] == LENGTH_SELECTED
    assert read_metadata(tmp_path / "model_best.safetensors")["training"]["selection"] == WEIGHTS_SELECTED
    assert "stopped after 2 validations without improvement" in caplog.text
    assert "optimistic" in caplog.text
    assert (tmp_path / "validation" / "over_time.png").stat().st_size > 0
