"""A run repeated with the configuration in its folder is bitwise identical on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.made.datasets import write_dataset
from volseg.config.load import load_config
from volseg.config.schema import Config
from volseg.device import deterministic_algorithms
from volseg.io.model_file import read_model
from volseg.models.kernels import mean_of_slices
from volseg.training.experiment import prepare
from volseg.training.loop import train
from volseg.training.losses import SegmentationLoss

pytestmark = pytest.mark.usefixtures("no_pictures")

MODEL = [
    "model.encoder=tiny",
    "model.weights=random",
    "model.features=4",
    "model.max_features=8",
    "model.drop_path=0.2",
]
LENGTH = ["train.max_steps=2", "train.validate_cases=0", "train.batch_size=1", "device=cpu", "data.workers=0"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:12, 4:12, 4:12] = 1
    images = [rng.normal(40, 20, label.shape).astype(np.int16) for _ in range(5)]
    return write_dataset(tmp_path / "data", images, [label] * 5, names=("background", "organ"))


def weights(config: Config) -> dict[str, torch.Tensor]:
    with prepare(config) as experiment, deterministic_algorithms(config.deterministic):
        state, _ = read_model(train(experiment))
    return state


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_configuration_of_a_run_repeats_it_bitwise(data: Path, tmp_path: Path) -> None:
    settings = [*MODEL, *LENGTH, f"data.root={data}"]
    first = weights(load_config(None, [*settings, "plan.patch_size=[16,16,16]", f"output={tmp_path / 'a'}"]))
    torch.rand(3)  # whatever ran before has no part in it
    again = load_config(tmp_path / "a" / "config.yaml", [f"output={tmp_path / 'b'}"])
    assert equal(weights(again), first)
    other = load_config(tmp_path / "a" / "config.yaml", [f"output={tmp_path / 'c'}", "seed=1", "deterministic=true"])
    assert not equal(weights(other), first)
    record = json.loads((tmp_path / "a" / "provenance.json").read_text(encoding="utf-8"))
    assert record["command"]
    assert record["seed"] == 0


def test_the_deterministic_forms_compute_the_same_function_and_the_mode_ends_with_its_block() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(-1, 3, (2, 8, 4, 4)).where(torch.rand(2, 8, 4, 4) > 0.1, torch.tensor(-1))
    loss = SegmentationLoss("ce", class_weights=(1.0, 2.0, 3.0)).double()

    def values() -> list[torch.Tensor]:
        pooled, cost = mean_of_slices(x, 4), loss([x], target)
        return [pooled.detach(), cost.detach(), *torch.autograd.grad(pooled.square().sum() + cost, x)]

    plain = values()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        torch.testing.assert_close(values(), plain, rtol=1e-12, atol=1e-12)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError), deterministic_algorithms(True):
        _ = 1 / 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
