"""Adaptation: gradients reach what trains, and frozen weights stay bitwise identical."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.made.encoders import small_entry
from tests.made.plans import StubPlan
from volseg.config import schema
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig, TrainConfig
from volseg.errors import ConfigError
from volseg.models.build import build_model, count_parameters, for_prediction, parameter_groups
from volseg.models.encoders import dinov2
from volseg.models.encoders.layers import DropPath

MODES = ("frozen", "linear", "lora", "bitfit", "full")
PLAIN = small_entry(width=32, depth=2, heads=2, grid=5)
GATED = small_entry(width=32, depth=2, heads=2, swiglu=True, registers=2, grid=5)
Build = Callable[..., nn.Module]


@pytest.fixture(params=[PLAIN, GATED], ids=["mlp", "swiglu"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Networks with a small encoder of the family."""
    monkeypatch.setitem(CATALOGUE, "dinov2_s14", request.param)
    monkeypatch.setattr(schema, "DECODERS", tuple({*schema.DECODERS, "linear"}))

    def make(mode: str, **settings: Any) -> nn.Module:
        probe = {"decoder": "linear", "aggregator": "none"} if mode == "linear" else {}
        values = {"encoder": "dinov2_s14", "weights": "random", "features": 4, "max_features": 8, **probe, **settings}
        torch.manual_seed(0)
        return build_model(ModelConfig(**values, adaptation=mode), StubPlan())

    return make


def pretrained(build: Build, mode: str, folder: Path, **settings: Any) -> nn.Module:
    path = folder / "weights.pth"
    torch.manual_seed(3)
    torch.save(dinov2.build_dinov2("dinov2_s14").state_dict(), path)
    return build(mode, weights=str(path), **settings)


def image() -> torch.Tensor:
    return torch.randn(2, 1, 10, 16, 16, generator=torch.Generator().manual_seed(1))


def fill_zero_weights(model: nn.Module) -> None:
    """Residuals that start at zero would hide the parameters behind them."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def run(model: nn.Module) -> None:
    """Forward and backward."""
    outputs = model(image())
    levels: Iterable[torch.Tensor] = outputs if isinstance(outputs, list) else [outputs]
    torch.stack([level.square().mean() for level in levels]).sum().backward()


def trained_of_encoder(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.encoder.vit.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("mode", MODES)
def test_gradient_reaches_every_trainable_parameter_and_no_frozen_one(build: Build, mode: str) -> None:
    model = build(mode, lora_mlp=True).train()
    fill_zero_weights(model)
    run(model)
    named = dict(model.named_parameters())
    assert [name for name, p in named.items() if p.requires_grad and (p.grad is None or not p.grad.any())] == []
    assert [name for name, p in named.items() if not p.requires_grad and p.grad is not None] == []


@pytest.mark.parametrize("mode", MODES)
def test_a_step_moves_what_trains_and_changes_nothing_else(build: Build, mode: str) -> None:
    model = build(mode, lora_mlp=True).train()
    fill_zero_weights(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model)
    torch.optim.AdamW(parameter_groups(model, lr=0.1, weight_decay=0.5)).step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "encoder" not in name)


def test_what_each_adaptation_trains(build: Build) -> None:
    names = dict(build("full").encoder.vit.named_parameters())
    assert trained_of_encoder(build("full")) == names.keys() - {"mask_token"}
    assert trained_of_encoder(build("frozen")) == trained_of_encoder(build("linear")) == set()
    # 2 x (norm1, qkv, proj, norm2, two MLP layers), patch embedding and final norm
    biases = trained_of_encoder(build("bitfit"))
    assert len(biases) == 2 * 6 + 2
    assert {"patch_embed.proj.bias", "blocks.1.attn.qkv.bias", "blocks.0.norm2.bias", "norm.bias"} <= biases
    assert all(name.endswith(".bias") and names[name].ndim == 1 for name in biases)
    lora = trained_of_encoder(build("lora"))
    layers = {f"blocks.{i}.attn.{layer}.lora_{x}" for i in (0, 1) for layer in ("qkv", "proj") for x in "ab"}
    assert lora == layers
    assert len(trained_of_encoder(build("lora", lora_mlp=True))) == 2 * len(layers)


@pytest.mark.parametrize("mode", MODES)
def test_drop_path_acts_only_where_the_encoder_trains(build: Build, mode: str) -> None:
    model = build(mode, drop_path=0.9).train()
    fill_zero_weights(model)
    trains = mode in ("lora", "bitfit", "full")
    assert {m.training for m in model.encoder.modules() if isinstance(m, DropPath)} == {trains}
    torch.manual_seed(1)
    runs = [model.encode(image())[-1].detach() for _ in range(4)]
    assert all(torch.equal(runs[0], other) for other in runs[1:]) == (not trains)


@pytest.mark.parametrize("mode", MODES)
def test_no_graph_where_nothing_of_the_encoder_trains(build: Build, mode: str) -> None:
    taps = build(mode).train().encode(image())
    assert {tap.requires_grad for tap in taps} == {mode not in ("frozen", "linear")}


@pytest.mark.parametrize("mode", MODES)
def test_every_adaptation_starts_as_the_same_network(build: Build, mode: str) -> None:
    other = build("full", **({"decoder": "linear", "aggregator": "none"} if mode == "linear" else {}))
    x = image()
    with torch.no_grad():
        assert torch.equal(build(mode).eval()(x), other.eval()(x))


def test_the_linear_probe_needs_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "DECODERS", ("unetr", "linear"))
    with pytest.raises(ConfigError, match=r"set model\.decoder=linear model\.aggregator=none"):
        ModelConfig(adaptation="linear", decoder="unetr", aggregator="none")
    with pytest.raises(ConfigError, match=r"found: model\.decoder=linear, model\.aggregator=attention"):
        ModelConfig(adaptation="linear", decoder="linear", aggregator="attention")
    with pytest.raises(ConfigError, match="an encoder"):
        ModelConfig(adaptation="linear", decoder="linear", aggregator="none", encoder="identity")
    ModelConfig(adaptation="linear", decoder="linear", aggregator="none")


@pytest.mark.parametrize(
    "values", [{"lora_rank": 0}, {"lora_alpha": 0.0}, {"lora_dropout": 1.0}, {"lora_dropout": -0.1}]
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"model.{next(iter(values))}"):
        ModelConfig(**values)


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_a_layer_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"train\.layer_decay"):
        TrainConfig(layer_decay=decay)


def learning_rates(model: nn.Module, **settings: float) -> dict[str, tuple[float, float]]:
    """Parameter name -> learning rate and weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, lr=1.0, weight_decay=0.5, **settings)
    rates = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    assert rates.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return rates


def test_each_layer_of_a_pretrained_encoder_learns_slower_than_the_one_above(build: Build, tmp_path: Path) -> None:
    rates = learning_rates(pretrained(build, "full", tmp_path), encoder_lr_scale=0.1, layer_decay=0.5)
    expected = {
        "encoder.vit.norm.weight": (0.1, 0.0),
        "encoder.vit.blocks.1.attn.qkv.weight": (0.05, 0.5),
        "encoder.vit.blocks.1.ls2.gamma": (0.05, 0.0),
        "encoder.vit.blocks.0.norm1.bias": (0.025, 0.0),
        "encoder.vit.patch_embed.proj.weight": (0.0125, 0.5),
        "encoder.vit.pos_embed": (0.0125, 0.0),
        "encoder.vit.cls_token": (0.0125, 0.0),
        "aggregator.query.weight": (1.0, 0.5),
    }
    for name, (lr, decay) in expected.items():
        assert rates[name] == (pytest.approx(lr), decay), name
    assert {lr for name, (lr, _) in rates.items() if not name.startswith("encoder.")} == {1.0}


def test_the_layer_is_read_as_a_number(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "dinov2_s14", small_entry(width=32, depth=12, heads=2, grid=5))
    rates = learning_rates(pretrained(build, "full", tmp_path), layer_decay=0.5)
    lr = [rates[f"encoder.vit.blocks.{index}.norm1.weight"][0] for index in range(12)]
    assert lr == pytest.approx([0.5 ** (12 - index) for index in range(12)])


def test_random_weights_learn_at_the_full_rate(build: Build, tmp_path: Path) -> None:
    settings = {"encoder_lr_scale": 0.1, "layer_decay": 0.5}
    assert {lr for lr, _ in learning_rates(build("full"), **settings).values()} == {1.0}
    lora = learning_rates(pretrained(build, "lora", tmp_path), **settings)
    assert {value for name, value in lora.items() if name.startswith("encoder.")} == {(1.0, 0.5)}
    bitfit = learning_rates(pretrained(build, "bitfit", tmp_path), **settings)
    assert bitfit["encoder.vit.norm.bias"] == (pytest.approx(0.1), 0.0)
    assert bitfit["encoder.vit.patch_embed.proj.bias"] == (pytest.approx(0.0125), 0.0)
    assert {decay for name, (_, decay) in bitfit.items() if name.startswith("encoder.")} == {0.0}


def test_counts_of_the_parts_add_up(build: Build) -> None:
    model = build("lora", lora_rank=2)
    counts = count_parameters(model)
    assert counts["parts"].keys() == {"encoder", "aggregator", "decoder"}
    for key in ("total", "trainable"):
        assert sum(part[key] for part in counts["parts"].values()) == counts[key]
    assert counts["parts"]["encoder"]["trainable"] == 2 * 2 * ((32 + 96) + (32 + 32))
    assert counts["parts"]["decoder"]["trainable"] == counts["parts"]["decoder"]["total"] > 0
    full = count_parameters(build("full"))["parts"]["encoder"]
    assert full["total"] - full["trainable"] == 32  # the mask token


@pytest.mark.parametrize("mode", MODES)
def test_prediction_builds_a_network_without_added_layers(build: Build, mode: str) -> None:
    probe = {"decoder": "linear", "aggregator": "none"} if mode == "linear" else {}
    plain = for_prediction(ModelConfig(encoder="dinov2_s14", weights="random", adaptation=mode, **probe))
    assert plain.adaptation == ("full" if mode == "lora" else mode)
