"""A run with adapted weights: it resumes, and its model file is a plain network."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.made.encoders import small_entry
from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import Config, ModelConfig, TrainConfig
from volseg.errors import ConfigError
from volseg.inference.predictor import Predictor
from volseg.io.datasets import Dataset
from volseg.io.model_file import read_model
from volseg.models.build import count_parameters
from volseg.models.encoders import dinov2
from volseg.planning.channel import ChannelIntensity
from volseg.planning.plan import Plan
from volseg.training.checkpoint import RunProgress
from volseg.training.experiment import Experiment
from volseg.training.loop import write_model
from volseg.training.provenance import write_provenance
from volseg.training.state import TrainingState

LORA = ModelConfig(encoder="dinov2_s14", weights="random", adaptation="lora", features=4, max_features=8)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "dinov2_s14", small_entry(width=32, depth=2, heads=2, grid=5))


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    plan = Plan(
        dataset="Test",
        modality="ct",
        channels=("CT",),
        labels={"background": 0, "organ": 1, "other": 2},
        slice_axis="S",
        spacing_mm=(1.0, 1.0, 1.0),
        intensity=(ChannelIntensity(rule="ct", clip_low=-1e4, clip_high=1e4, mean=0.0, std=1.0),),
        crop_nonzero=False,
        patch_size=(8, 16, 16),
        token_stride=8,
        decoder_strides=StubPlan().decoder_strides,
        mirror_axes=(),
        nearest_depth=False,
        rotate_in_plane_only=False,
    )
    dataset = Dataset.__new__(Dataset)  # nothing here reads it
    return Experiment(make_config(LORA), tmp_path, dataset, plan, (), ())


def make_config(model: ModelConfig, **train: float) -> Config:
    return Config(device="cpu", model=model, train=TrainConfig(max_steps=10, lr=0.01, weight_decay=0.5, **train))


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 1, 10, 16, 16, generator=generator),
        "label": torch.randint(0, 3, (2, 8, 16, 16), generator=generator),
    }


def trained(experiment: Experiment, steps: range, resume: Path | None = None) -> TrainingState:
    state = TrainingState(experiment.config, experiment.plan)
    if resume is not None:
        state.restore(resume)
    for step in steps:
        state.step([make_batch()], step, spent=0.5)
    return state


def test_training_moves_lora_alone_in_the_encoder_and_resumes_to_the_bit(experiment: Experiment) -> None:
    start = {name: value.clone() for name, value in trained(experiment, range(0)).model.state_dict().items()}
    whole, half = trained(experiment, range(4)), trained(experiment, range(2))
    moved = {name for name, value in whole.model.state_dict().items() if not torch.equal(value, start[name])}
    encoder = {name for name in start if name.startswith("encoder.")}
    assert moved & encoder == {name for name in encoder if "lora_" in name}
    assert len(moved & encoder) == 8
    half.save(experiment.folder, RunProgress(step=2))
    resumed = trained(experiment, range(2, 4), resume=experiment.folder)
    for one, other in ((whole.model, resumed.model), (whole.average.model, resumed.average.model)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_the_model_file_is_a_plain_network_that_predicts_the_same(experiment: Experiment) -> None:
    state = trained(experiment, range(4))
    record = write_provenance(experiment, count_parameters(state.model))
    path = write_model(experiment, state.average.model, record, RunProgress(step=4), "model.safetensors")
    weights, metadata = read_model(path)
    official = dinov2.build_dinov2("dinov2_s14", in_channels=2)
    prefix = "encoder.vit."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    official.load_state_dict(own, strict=True)
    scan = torch.randn(9, 20, 18, generator=torch.Generator().manual_seed(2)).numpy()
    affine = torch.eye(4).numpy()
    predictors = Predictor.from_file(path, "cpu"), Predictor.from_model(state.average.model, experiment.plan, "cpu")
    files = [experiment.folder / f"{number}.nii.gz" for number in range(2)]
    for one, file in zip(predictors, files, strict=True):
        one.segment(one.read(scan, affine), probabilities=file)
    np.testing.assert_allclose(*(np.asarray(nibabel.load(file).dataobj) for file in files), atol=2e-3)
    assert metadata["config"]["model"]["adaptation"] == "full"
    assert metadata["training"]["model"]["adaptation"] == "lora"
    counts = metadata["training"]["parameters"]
    assert counts == count_parameters(state.model)
    assert counts["parts"]["encoder"]["trainable"] == 2 * 8 * ((32 + 96) + (32 + 32))


def test_the_log_says_what_trains(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    counts = {"total": 1200, "trainable": 200, "parts": {"encoder": {"total": 1100, "trainable": 100}}}
    with caplog.at_level(logging.INFO, "volseg"):
        write_provenance(experiment, counts)
    assert "all: 200 of 1,200 trainable; encoder: 100 of 1,100 trainable" in caplog.text


def test_the_learning_rate_that_is_logged_is_the_networks(experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(dinov2.build_dinov2("dinov2_s14").state_dict(), path)
    model = replace(LORA, adaptation="full", weights=str(path))
    state = TrainingState(make_config(model, layer_decay=0.5, warmup_fraction=0.5), experiment.plan)
    state.step([make_batch()], 0, spent=0.25)
    assert state.lr == pytest.approx(0.005)
    state.save(tmp_path, RunProgress(step=1))
    with pytest.raises(ConfigError, match=r"train\.layer_decay: the run has 0\.5, given 1\.0"):
        TrainingState(make_config(model), experiment.plan).restore(tmp_path)
    path.unlink()  # to go on it is not needed
    config = make_config(model, layer_decay=0.5, warmup_fraction=0.5)
    again = TrainingState(config, experiment.plan, read_weights=False)
    assert again.restore(tmp_path) == RunProgress(step=1)
    for one in (state, again):
        one.step([make_batch()], 1, spent=0.5)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in state.model.state_dict().items())
