"""Config to modules: parameter groups, counts, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made.encoders import small_entry
from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError
from volseg.models.build import build_model, count_parameters, parameter_groups
from volseg.models.encoders import dinov2

CONFIG = ModelConfig(encoder="tiny", weights="random", features=4, max_features=8)


def rates(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(model, lr=1.0, encoder_lr_scale=0.1, weight_decay=0.5)
    return {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}


def test_groups_hold_every_trainable_parameter_once_and_decay_only_matrices() -> None:
    model = build_model(CONFIG, StubPlan())
    groups = parameter_groups(model, lr=1.0, weight_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(decay) == {id(p) for p in named.values()}
    undecayed = {name.rsplit(".", 1)[-1] for name, p in named.items() if decay[id(p)] == 0}
    assert undecayed == {"bias", "weight", "gamma", "pos_embed", "cls_token"}
    assert all(p.ndim == 1 for name, p in named.items() if decay[id(p)] == 0 and name.endswith("weight"))
    assert all(p.ndim > 1 for p in named.values() if decay[id(p)])


def test_only_a_pretrained_encoder_learns_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "dinov2_s14", small_entry(width=32, depth=1, heads=2, grid=5))
    random = build_model(replace(CONFIG, encoder="dinov2_s14"), StubPlan())
    assert {name: lr for name, (lr, _) in rates(random).items() if name.startswith("encoder")} == {
        "encoder, decay": 1.0,
        "encoder, no decay": 1.0,
    }
    path = tmp_path / "weights.pth"
    torch.save(dinov2.build_dinov2("dinov2_s14").state_dict(), path)
    pretrained = replace(CONFIG, encoder="dinov2_s14", weights=str(path))
    assert rates(build_model(pretrained, StubPlan())) == {
        "encoder, decay": (0.1, 0.5),
        "encoder, no decay": (0.1, 0.0),
        "network, decay": (1.0, 0.5),
        "network, no decay": (1.0, 0.0),
    }
    assert not any(
        name.startswith("encoder") for name in rates(build_model(replace(pretrained, adaptation="frozen"), StubPlan()))
    )


def test_count_parameters() -> None:
    frozen = build_model(replace(CONFIG, adaptation="frozen"), StubPlan())
    counts = count_parameters(frozen)
    encoder = sum(p.numel() for p in frozen.encoder.parameters())
    assert counts["total"] - counts["trainable"] == encoder > 1_000_000


def test_token_stride_and_decoder_strides_must_agree() -> None:
    with pytest.raises(ConfigError, match="token stride"):
        build_model(CONFIG, StubPlan(token_stride=16))


def test_a_random_start_must_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"model\.weights=random"):
        build_model(ModelConfig(encoder="tiny"), StubPlan())


@pytest.mark.parametrize("change", [{"encoder": "identity"}, {"aggregator": "none"}, {"aggregator": "conv"}], ids=str)
def test_what_two_networks_share_starts_with_the_same_weights(change: dict[str, Any]) -> None:
    """Otherwise a comparison of the two would be one of two seeds."""
    states = []
    for config in (CONFIG, replace(CONFIG, **change)):
        torch.manual_seed(5)
        states.append(build_model(config, StubPlan()).state_dict())
    shared = [name for name in states[1] if name in states[0] and not name.startswith("aggregator")]
    assert any("decoder.ups" in name for name in shared)
    for name in shared:
        torch.testing.assert_close(states[1][name], states[0][name], atol=0, rtol=0)


@torch.no_grad()
def test_a_network_starts_as_its_control() -> None:
    """The projections of the tokens start at zero, so every effect of the encoder is learned."""
    outputs, image = [], torch.randn(1, 1, 10, 32, 32)
    for config in (CONFIG, replace(CONFIG, encoder="identity")):
        torch.manual_seed(5)
        outputs.append(build_model(config, StubPlan()).eval()(image))
    assert torch.equal(*outputs)
    assert outputs[0].std() > 0


def test_another_seed_starts_with_other_weights() -> None:
    torch.manual_seed(5)
    one, other = (build_model(CONFIG, StubPlan()).state_dict()["decoder.ups.0.weight"] for _ in range(2))
    assert not torch.equal(one, other)
