"""Decoder: kernels, taps, pooling and padding."""

from __future__ import annotations

import pytest
import torch

from volseg.config.levels import conv_kernel, receptive_field
from volseg.models.contracts import FeatureSpec, crop_to, pad_to_multiple
from volseg.models.decoders import unetr
from volseg.models.decoders.unetr import TapFusion, UnetrDecoder, assign_taps
from volseg.models.kernels import InstanceNorm
from volseg.planning import rules


@pytest.mark.parametrize(
    ("taps", "levels", "expected"),
    [
        ([4] * 4, 3, {1: (0,), 2: (1, 2, 3)}),
        ([8] * 4, 4, {1: (0,), 2: (1,), 3: (2, 3)}),
        ([16] * 4, 5, {1: (0,), 2: (1,), 3: (2,), 4: (3,)}),
        ([16] * 2, 5, {1: (0,), 4: (1,)}),
        ([8], 4, {3: (0,)}),
        ([], 4, {}),
        ([8] * 4, 6, {1: (0,), 2: (1,), 3: (2, 3)}),  # two levels below the tokens
        ([2, 4, 8, 8], 4, {1: (0,), 2: (1,), 3: (2, 3)}),  # an encoder with taps at several strides
        ([4, 8, 16, 16], 6, {2: (0,), 3: (1,), 4: (2, 3)}),
    ],
)
def test_every_tap_enters_once_and_the_last_of_a_stride_at_its_level(
    taps: list[int], levels: int, expected: dict[int, tuple[int, ...]]
) -> None:
    spec = FeatureSpec((6,) * len(taps), tuple((1, stride, stride) for stride in taps))
    assert assign_taps(spec, [(1, 2**level, 2**level) for level in range(levels)]) == expected


def deep_decoder(taps: FeatureSpec) -> UnetrDecoder:
    """Return a decoder with two levels below stride 4, from the same random state."""
    torch.manual_seed(0)
    strides = ((1, 1, 1), (2, 2, 2), (4, 4, 4), (4, 8, 8), (8, 16, 16))
    return UnetrDecoder(
        image_channels=1, num_classes=2, strides=strides, spacing_mm=(1.0,) * 3, taps=taps, features=4
    ).eval()


def test_levels_below_the_tokens_see_them_and_start_as_the_control() -> None:
    x, tap = torch.randn(1, 1, 8, 32, 32), torch.randn(1, 6, 8, 8, 8, requires_grad=True)
    decoder, control = deep_decoder(FeatureSpec((6,), ((1, 4, 4),))), deep_decoder(FeatureSpec())
    assert decoder.multiple == (8, 16, 16)
    assert torch.equal(decoder(x, [tap])[0], control(x, [])[0])
    torch.nn.init.normal_(decoder.fusions["2"].proj.weight)
    skips = decoder.skips(x, [tap])
    skips[4].sum().backward()
    assert tap.grad.abs().sum() > 0


def test_without_a_stem_there_is_no_level_below_the_tokens() -> None:
    strides = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
    settings = {"image_channels": 1, "num_classes": 2, "spacing_mm": (1.0,) * 3, "features": 4, "stem": False}
    decoder = UnetrDecoder(strides=strides, taps=FeatureSpec((6,), ((1, 2, 2),)), **settings).eval()
    assert decoder.multiple == (2, 2, 2)
    assert decoder(torch.randn(1, 1, 4, 8, 8), [torch.randn(1, 6, 4, 4, 4)])[0].shape == (1, 2, 4, 8, 8)


@pytest.mark.parametrize(
    ("spacing", "depth", "deepest", "size"),
    [((1, 1, 1), 40, 4, (64, 64, 64)), ((1, 1, 1), 80, 8, (112, 112, 112)), ((4, 1, 1), 16, 8, (64, 112, 112))],
)
def test_the_receptive_field_is_what_one_voxel_of_the_logits_depends_on(
    spacing: tuple, depth: int, deepest: int, size: tuple
) -> None:
    strides = rules.decoder_strides(spacing, depth, deepest)
    settings = {"image_channels": 1, "num_classes": 2, "taps": FeatureSpec(), "features": 1, "max_features": 1}
    decoder = UnetrDecoder(strides=strides, spacing_mm=spacing, **settings).eval()
    for name, module in list(decoder.named_modules()):
        if isinstance(module, InstanceNorm | torch.nn.LeakyReLU):  # a norm depends on all voxels
            decoder.set_submodule(name, torch.nn.Identity())
        elif not list(module.children()) and hasattr(module, "weight"):
            torch.nn.init.constant_(module.weight, 0.1)
    x = torch.zeros(1, 1, *size, requires_grad=True)
    decoder(x, [])[0][0, 0, size[0] // 2, size[1] // 2, size[2] // 2].backward()
    seen = x.grad[0, 0].nonzero()
    extent = seen.amax(0) - seen.amin(0) + 1
    expected = torch.tensor(receptive_field(strides, spacing))
    assert ((extent - expected).abs() < torch.tensor(strides[-1])).all()  # by the place of the voxel in its coarse one


def test_kernels_are_flat_while_slices_are_thick() -> None:
    thick = (7.7, 1.6, 1.6)
    assert conv_kernel((1, 1, 1), thick) == (1, 3, 3)
    assert conv_kernel((1, 2, 2), thick) == (1, 3, 3)
    assert conv_kernel((1, 4, 4), thick) == (3, 3, 3)
    assert conv_kernel((1, 16, 16), (1.0, 1.0, 1.0)) == (3, 3, 3)


def test_thick_slices_do_not_mix_before_the_deep_level() -> None:
    decoder = UnetrDecoder(
        image_channels=1,
        num_classes=2,
        strides=((1, 1, 1), (1, 2, 2)),
        spacing_mm=(9.0, 1.0, 1.0),
        taps=FeatureSpec(),
        features=4,
    )
    assert {module.kernel_size[0] for module in decoder.modules() if isinstance(module, torch.nn.Conv3d)} == {1}


def test_fusion_pools_depth_and_enlarges_in_plane() -> None:
    fusion = TapFusion([3, 2], 5, pool=2, scale=4)
    taps = [torch.randn(2, channels, 6, 2, 3) for channels in (3, 2)]
    fused = fusion(taps)
    assert fused.shape == (2, 5, 3, 8, 12)
    constant = fusion([torch.ones_like(tap) for tap in taps])
    expected = (fusion.proj.weight.sum(dim=1) + fusion.proj.bias).reshape(1, 5, 1, 1, 1).expand_as(constant)
    torch.testing.assert_close(constant, expected)


def test_padding_keeps_indices_and_repeats_the_last_voxel() -> None:
    x = torch.arange(12.0).reshape(1, 1, 1, 3, 4)
    padded = pad_to_multiple(x, (2, 2, 4))
    assert padded.shape == (1, 1, 2, 4, 4)
    assert torch.equal(padded[0, 0, 1, 3], x[0, 0, 0, 2])
    assert torch.equal(crop_to(padded, (1, 3, 4)), x)
    assert pad_to_multiple(x, (1, 3, 2)) is x


def test_the_memory_format_does_not_change_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = UnetrDecoder(
        image_channels=2,
        num_classes=3,
        strides=((1, 1, 1), (1, 2, 2), (2, 4, 4)),
        spacing_mm=(1.5, 1.0, 1.0),
        taps=FeatureSpec((6, 6), ((1, 4, 4),) * 2),
        features=4,
    ).double()
    x = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    taps = [torch.randn(2, 6, 4, 2, 2, dtype=torch.float64) for _ in range(2)]
    channels_last = decoder(x, taps)
    monkeypatch.setattr(unetr, "to_channels_last", lambda x: x)
    for last, first in zip(channels_last, decoder(x, taps), strict=True):
        torch.testing.assert_close(last, first)


def test_without_the_stem_voxels_do_not_enter() -> None:
    torch.manual_seed(0)
    spec = FeatureSpec((6,), ((1, 4, 4),))  # one tap: nothing but what comes from below enters level 1
    settings = {"image_channels": 1, "num_classes": 2, "spacing_mm": (1.0,) * 3, "taps": spec, "features": 4}
    decoder = UnetrDecoder(strides=((1, 1, 1), (2, 2, 2), (2, 4, 4)), stem=False, **settings).eval()
    tap = torch.randn(1, 6, 4, 2, 2)
    one, other = (decoder(torch.randn(1, 1, 4, 8, 8), [tap])[0] for _ in range(2))
    assert torch.equal(one, other)
    assert one.shape == (1, 2, 4, 8, 8)
    assert not torch.equal(one, decoder(torch.randn(1, 1, 4, 8, 8), [tap + 1])[0])


@pytest.mark.parametrize("channels", [1, 2])
def test_all_convolutions_run_channels_last(channels: int) -> None:
    decoder = UnetrDecoder(
        image_channels=channels,
        num_classes=2,
        strides=((1, 1, 1), (2, 2, 2), (4, 4, 4)),
        spacing_mm=(1.0, 1.0, 1.0),
        taps=FeatureSpec(),
        features=4,
    )
    layouts: list[bool] = []
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(
                lambda _, __, x: layouts.append(x.is_contiguous(memory_format=torch.channels_last_3d))
            )
    decoder(torch.randn(2, channels, 8, 12, 8), [])
    assert len(layouts) == 10
    assert all(layouts)
