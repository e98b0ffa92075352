"""An encoder of another kind needs a module and a catalogue entry, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.made import convnet
from tests.made.plans import THICK, StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError
from volseg.models.build import build_model, parameter_groups
from volseg.models.describe import describe_model
from volseg.models.encoders.download import official_url

SETTINGS = {"encoder": "convnet", "weights": "random", "features": 4, "max_features": 8}
PLANS = {"isotropic": StubPlan(), "thick": THICK}


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "convnet", convnet.ENTRY)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("decoder", ["unetr", "linear", "unet2d"])
@pytest.mark.parametrize("aggregator", ["none", "conv", "attention"])
def test_every_part_works_with_it(aggregator: str, decoder: str, plan: StubPlan) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**SETTINGS, aggregator=aggregator, decoder=decoder), plan).eval()
    x = torch.randn(1, plan.num_channels, 6, 13, 17)
    taps = model.encode(x)
    assert {tuple(tap.shape) for tap in taps} == {(1, 24, 4, -(-13 // plan.token_stride), -(-17 // plan.token_stride))}
    assert model(x).shape == (1, plan.num_classes, 4, 13, 17)
    assert torch.equal(model.decode(taps, x[:, :, 1:-1]), model(x))


def test_a_slice_is_resized_to_its_patch() -> None:
    """8 voxels a token and 16 pixels a patch: twice the size."""
    model, sizes = build_model(ModelConfig(**SETTINGS), StubPlan()), []
    model.encoder.vit.embed.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape)))
    model.encode(torch.randn(1, 1, 5, 24, 16))
    assert sizes == [(3, 2, 48, 32)]


def test_its_cost_by_hand() -> None:
    encoder, *_ = describe_model(ModelConfig(**SETTINGS), StubPlan(), batch_size=1)
    embedding, layer = 2 * 16 * 16 * 24, 9 * 24 + 24 * 24
    assert encoder.parameters == (embedding + 24) + 3 * (layer + 24 + 24)
    assert encoder.macs == 8 * 2 * 2 * (embedding + 3 * layer)  # 8 slices of 2 x 2 tokens


def test_each_layer_of_it_learns_slower_than_the_one_above() -> None:
    model = build_model(ModelConfig(**SETTINGS), StubPlan())
    model.pretrained = True
    groups = parameter_groups(model, lr=1.0, encoder_lr_scale=0.1, layer_decay=0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    vit = model.encoder.vit
    weights = [vit.embed.weight, *(block.pointwise.weight for block in vit.blocks)]
    assert [rates[id(weight)] for weight in weights] == pytest.approx([0.1 * 0.5**n for n in (4, 3, 2, 1)])


def test_checkpointing_changes_nothing_but_memory() -> None:
    kept, gradients = [], []
    for choice in (False, True):
        config = ModelConfig(**SETTINGS, checkpoint_encoder=choice, stem=False)
        kept.append(describe_model(config, StubPlan(), batch_size=2)[0].kept_bytes)
        torch.manual_seed(0)
        model = build_model(config, StubPlan()).train()
        model(torch.randn(1, 1, 10, 16, 16, generator=torch.Generator().manual_seed(1)))[0].square().mean().backward()
        gradients.append(model.encoder.vit.embed.weight.grad)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)
    images, layer = 2 * 8 * 2 * 32 * 32 * 4, 2 * 8 * 24 * 2 * 2 * 4  # bytes of all slices
    assert kept == [images + 3 * 3 * layer, images + 3 * layer]  # input of each convolution and of GELU; of each layer


def test_rgb_weights_are_adapted_at_its_own_first_layer(tmp_path: object) -> None:
    path = f"{tmp_path}/weights.pth"
    torch.manual_seed(0)
    rgb = convnet.ConvNet(convnet.ENTRY, 3)
    torch.save(rgb.state_dict(), path)
    model = build_model(ModelConfig(**{**SETTINGS, "weights": path}), StubPlan())
    weight = model.encoder.vit.embed.weight
    expected = rgb.embed.weight.sum(1) / 3  # a slice and its two neighbours
    np.testing.assert_allclose(weight[:, 0].detach(), expected.detach(), atol=1e-6)
    assert weight.shape == (24, 2, 16, 16)


def test_what_it_does_not_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no layers for LoRA"):
        build_model(ModelConfig(**SETTINGS, adaptation="lora"), StubPlan())
    with pytest.raises(ConfigError, match="no official weights"):
        official_url("convnet")
    with pytest.raises(ConfigError, match="convnet, identity"):
        replace(ModelConfig(**SETTINGS), encoder="convnet_l")
