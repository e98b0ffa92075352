"""Decoder: kernels, taps, pooling and padding."""

from __future__ import annotations

import pytest
import torch

from volseg.models.contracts import FeatureSpec, crop_to, pad_to_multiple
from volseg.models.decoders import unetr
from volseg.models.decoders.unetr import TapFusion, UnetrDecoder, assign_taps, kernel_at


@pytest.mark.parametrize(
    ("taps", "levels", "expected"),
    [
        (4, 3, {1: (0,), 2: (1, 2, 3)}),
        (4, 4, {1: (0,), 2: (1,), 3: (2, 3)}),
        (4, 5, {1: (0,), 2: (1,), 3: (2,), 4: (3,)}),
        (2, 5, {1: (0,), 4: (1,)}),
        (1, 4, {3: (0,)}),
        (0, 4, {}),
    ],
)
def test_every_tap_enters_once_and_the_last_at_the_deepest(
    taps: int, levels: int, expected: dict[int, tuple[int, ...]]
) -> None:
    assert assign_taps(taps, levels) == expected


def test_kernels_are_flat_while_slices_are_thick() -> None:
    thick = (7.7, 1.6, 1.6)
    assert kernel_at((1, 1, 1), thick) == (1, 3, 3)
    assert kernel_at((1, 2, 2), thick) == (1, 3, 3)
    assert kernel_at((1, 4, 4), thick) == (3, 3, 3)
    assert kernel_at((1, 16, 16), (1.0, 1.0, 1.0)) == (3, 3, 3)


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
