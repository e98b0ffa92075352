"""Per-slice decoders: the linear probe and the 2D U-Net."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.made.encoders import small_entry
from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError
from volseg.models.build import build_model
from volseg.models.contracts import FeatureSpec
from volseg.models.decoders.per_slice import LinearDecoder, UnetDecoder2d

PROBE = ModelConfig(encoder="tiny", weights="random", adaptation="frozen", aggregator="none", decoder="linear")


def spec(count: int, stride: int, width: int = 32) -> FeatureSpec:
    return FeatureSpec((width,) * count, ((1, stride, stride),) * count)


def test_the_linear_probe_is_a_classifier_on_the_last_tokens() -> None:
    """By hand: logits of a token, and half-pixel bilinear steps between two tokens."""
    decoder = LinearDecoder(num_classes=2, taps=spec(1, 4, width=3))
    with torch.no_grad():
        decoder.head.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0]])[..., None, None])
        decoder.head.bias.copy_(torch.tensor([0.0, 1.0]))
    tap = torch.zeros(1, 3, 2, 1, 2)
    tap[0, :, 1, 0] = torch.tensor([[0.0, 8.0], [5.0, 5.0], [9.0, 9.0]])
    (logits,) = decoder(torch.zeros(1, 1, 2, 4, 8), [tap])
    assert logits.shape == (1, 2, 2, 4, 8)
    assert logits[0, 0, 1, 2].tolist() == [0, 0, 1, 3, 5, 7, 8, 8]
    assert logits[0, 1, 1].unique().tolist() == [11]
    assert logits[0, 1, 0].unique().tolist() == [1]


def test_a_frozen_linear_probe_trains_its_classifier_only() -> None:
    model = build_model(PROBE, StubPlan())
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"decoder.head.weight": 192 * 3, "decoder.head.bias": 3}
    assert model.encoder.tap_indices == (3,)
    assert model.deep_strides == ()


def test_no_decoder_strides_are_needed() -> None:
    plan = StubPlan(token_stride=16)  # the decoder's strides are those of another token stride
    with pytest.raises(ConfigError, match="token stride"):
        build_model(replace(PROBE, decoder="unetr"), plan)
    model = build_model(PROBE, plan).eval()
    assert model(torch.randn(1, 1, 5, 9, 13)).shape == (1, 3, 3, 9, 13)


@pytest.mark.parametrize(("stride", "steps"), [(16, [2, 2, 2, 2]), (8, [1, 2, 2, 2]), (4, [1, 1, 2, 2])])
def test_five_taps_make_four_steps_of_half_the_width(stride: int, steps: list[int]) -> None:
    decoder = UnetDecoder2d(num_classes=3, taps=spec(5, stride))
    assert [block.up.stride[0] for block in decoder.blocks] == steps
    assert [(block.up.in_channels, block.up.out_channels) for block in decoder.blocks] == [
        (32, 16),
        (16, 8),
        (8, 4),
        (4, 2),
    ]
    taps = [torch.randn(2, 32, 3, 2, 1) for _ in range(5)]
    assert decoder(torch.zeros(2, 1, 3, 2 * stride, stride), taps)[0].shape == (2, 3, 3, 2 * stride, stride)


def test_each_tap_enters_the_unet_and_slices_do_not_mix() -> None:
    torch.manual_seed(0)
    decoder = UnetDecoder2d(num_classes=3, taps=spec(5, 4)).double().eval()
    x, taps = torch.zeros(1, 1, 3, 8, 8), [torch.randn(1, 32, 3, 2, 2, dtype=torch.float64) for _ in range(5)]
    before = decoder(x, taps)[0]
    for index in range(5):
        changed = [tap.clone() for tap in taps]
        changed[index][:, :, 1] += torch.randn(1, 32, 2, 2)
        difference = (decoder(x, changed)[0] - before).abs().amax(dim=(0, 1, 3, 4))
        assert difference[1] > 1e-4
        assert difference[[0, 2]].max() < 1e-12


def test_fewer_taps_than_doublings_leave_the_last_steps_without(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = UnetDecoder2d(num_classes=2, taps=spec(2, 8))
    assert [block.skip is not None for block in decoder.blocks] == [True, False, False]
    monkeypatch.setitem(CATALOGUE, "tiny", small_entry(width=16, depth=12, heads=2, grid=3))
    model = build_model(replace(PROBE, decoder="unet2d"), StubPlan())
    assert model.encoder.tap_indices == (2, 4, 7, 9, 11)


@pytest.mark.parametrize("choice", [{"decoder": "linear"}, {"decoder": "unet2d"}, {"stem": False}])
def test_a_decoder_without_any_input_is_refused(choice: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="this decoder needs an encoder"):
        ModelConfig(encoder="identity", **choice)
    assert ModelConfig(encoder="identity", baseline="dynunet", **choice).baseline  # not built from these parts
