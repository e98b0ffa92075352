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


def test_the_encoder_may_see_slices_at_another_scale_than_the_plan() -> None:
    config = replace(CONFIG, encoder="vit_s16", encoder_scale=4)
    model = build_model(config, StubPlan(token_stride=8))
    assert model.encoder.token_stride == 4
    assert [tuple(tap.shape[2:]) for tap in model.encode(torch.randn(1, 1, 3, 16, 24))] == [(1, 4, 6)] * 4
    sizes: list[tuple[int, ...]] = []
    model.encoder.vit.patch_embed.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape[-2:])))
    model.encode(torch.randn(1, 1, 3, 16, 24))
    assert sizes == [(64, 96)]


@pytest.mark.parametrize(
    ("encoder", "scale", "message"),
    [
        ("vit_s16", 3, "set model.encoder_scale to one of 8, 4, 2"),
        ("vit_s16", 1, "= 16 voxels per token"),
        ("medsam_lite", 2, "finer than a voxel"),
    ],
)
def test_a_scale_that_fits_no_level_is_refused(encoder: str, scale: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(replace(CONFIG, encoder=encoder, encoder_scale=scale), StubPlan())
