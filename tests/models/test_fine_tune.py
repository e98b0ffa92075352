"""Fine-tuning on other data: what a network takes over from a model of other channels, strides, spacing or classes."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.made.plans import StubPlan
from volseg.config.schema import ModelConfig
from volseg.errors import ModelFileError
from volseg.io.model_file import save_model
from volseg.models.build import build_model
from volseg.models.contracts import SegmentationNetwork
from volseg.models.fine_tune import adapt_channels

CONFIG = ModelConfig(encoder="tiny", weights="random", features=4, max_features=8)
STEM, PATCHES = "decoder.stem.0.0.0.weight", "encoder.vit.patch_embed.proj.weight"


@dataclass(frozen=True)
class NamedPlan(StubPlan):
    channels: tuple[str, ...] = ("T1",)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model of two channels and token stride 8, and its weights."""
    torch.manual_seed(1)
    plan = NamedPlan(num_channels=2, channels=("T1", "T2"))
    state = {key: value + 0.1 for key, value in build_model(CONFIG, plan).state_dict().items()}
    labels = {name: index for index, name in enumerate(plan.class_names)}
    content = {"config": {"model": asdict(CONFIG)}, "plan": {"channels": ["T1", "T2"]}, "labels": labels}
    save_model(tmp_path / "model.safetensors", state, content)
    return tmp_path / "model.safetensors", state


def start(path: Path, plan: StubPlan) -> SegmentationNetwork:
    torch.manual_seed(2)
    return build_model(replace(CONFIG, weights=str(path)), plan)


def test_channels_are_taken_by_name_and_others_are_the_mean() -> None:
    weight = torch.arange(24.0).reshape(2, 6, 2)  # two groups of three channels
    a, b, c = (weight[:, [index, 3 + index]] for index in range(3))
    mean = (a + b + c) / 3

    def adapted(*names: str) -> tuple[torch.Tensor, str]:
        value, rule = adapt_channels(weight, ("A", "B", "C"), names, Path("model"))
        return value.unflatten(1, (2, -1)), rule

    value, rule = adapted("c", "X", " A")
    torch.testing.assert_close(value, torch.stack([c, mean, a], dim=2))
    assert rule == "input channels c,  A: by name; X: mean of A, B, C"
    value, rule = adapted("X", "Y")
    torch.testing.assert_close(value, torch.stack([1.5 * mean, 1.5 * mean], dim=2))
    torch.testing.assert_close(value.sum(dim=2), a + b + c)  # equal images give the same result as before
    assert rule == "input channels X, Y: mean of A, B, C, times 3/2"
    value, rule = adapted("A", "B", "C")
    assert value.flatten(1, 2).equal(weight)
    assert not rule
    with pytest.raises(ModelFileError, match="6 channels of a weight, 4 of the plan"):
        adapt_channels(weight, ("A", "B", "C", "D"), ("A",), Path("model"))


def test_other_channels_and_classes(model: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, before = model
    network = start(path, NamedPlan(num_classes=5, num_channels=1, channels=("T2",)))
    state, record = network.state_dict(), network.start
    assert record is not None
    assert state[STEM].equal(before[STEM][:, 1:])
    assert state[PATCHES].equal(before[PATCHES][:, [1, 3]])  # the slice, and its neighbours
    assert record["adapted"] == dict.fromkeys((PATCHES, STEM), "input channels T2: by name")
    assert {key.rpartition(".")[0] for key in record["anew"]} == {f"decoder.heads.{level}" for level in range(3)}
    kept = [key for key in state if key not in record["anew"] and key not in record["adapted"]]
    assert all(state[key].equal(before[key]) for key in kept)
    assert sum(record["taken_over"].values()) == len(kept)
    assert record["file"] == str(path)


def test_another_stride_and_spacing(
    model: tuple[Path, dict[str, torch.Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    """Slices of 7.7 mm have flat kernels at the finest levels; a token stride of 16 has one level more."""
    path, before = model
    strides = ((1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16))
    plan = NamedPlan((7.7, 1.25, 1.25), (4, 32, 32), 16, strides, 3, 2, ("T1", "T2"))
    with caplog.at_level(logging.INFO):
        network = start(path, plan)
    state, record = network.state_dict(), network.start
    assert record is not None
    torch.manual_seed(2)
    fresh = build_model(CONFIG, plan).state_dict()
    for key, value in state.items():
        assert value.equal((fresh if key in record["anew"] else before)[key]), key
    anew = record["anew"]
    assert STEM in anew
    assert "another shape here" in anew[STEM]
    assert anew["decoder.stem.4.0.0.weight"] == "that model has no such level"
    assert not [key for key in anew if not key.startswith("decoder.")]
    assert "decoder.heads.0.weight" not in anew  # the same classes
    assert record["left_out"] == {}
    (line,) = [line for line in caplog.text.splitlines() if line.endswith("that model has no such level")]
    assert "starts anew: decoder.ups.3 (1 tensor), decoder.blocks.3 (6 tensors)" in line
    network(torch.zeros(1, 2, 6, 32, 32))  # the network is whole


def test_a_level_less_is_left_out(model: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = model
    plan = NamedPlan((1.0, 1.0, 1.0), (4, 16, 16), 4, ((1, 1, 1), (2, 2, 2), (4, 4, 4)), 3, 2, ("T1", "T2"))
    record = start(path, plan).start
    assert record is not None
    assert record["left_out"]["decoder.stem.3"] == 6
    assert record["taken_over"]["decoder.stem.0"] == 6
