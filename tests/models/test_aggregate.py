"""Aggregators: identity at the start, millimetres, any depth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from volseg.models.aggregate import DepthAttention, DepthConv, NoAggregator, blur_weights, rotate
from volseg.models.attention import reference_attention
from volseg.models.contracts import FeatureSpec

SPEC = FeatureSpec((32, 32), ((1, 8, 8),) * 2)
SPACING = (3.0, 1.0, 1.0)


def noisy(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().eval().parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def made(name: str) -> nn.Module:
    return DepthConv(SPEC) if name == "conv" else DepthAttention(SPEC, 2)


def taps(batch: int = 1, depth: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(batch, 32, depth, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("name", ["conv", "attention"])
def test_it_starts_as_the_identity_to_the_bit(name: str) -> None:
    before = taps()
    after = made(name).double()(before, SPACING)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert NoAggregator(SPEC)(before, SPACING) is before


@pytest.mark.parametrize("name", ["conv", "attention"])
def test_only_columns_along_depth_are_mixed_as_far_as_they_reach(name: str) -> None:
    module, before = noisy(made(name)), taps(depth=12)
    changed = [tap.clone() for tap in before]
    changed[-1][:, :16, 5, 1, 1] += 1
    difference = (module(changed, SPACING)[-1] - module(before, SPACING)[-1]).abs().amax(dim=(0, 1))  # (D, h, w)
    reach = 12 if module.reach is None else module.reach
    assert (difference[:, 1, 1] > 1e-6).nonzero().flatten().tolist() == [
        index for index in range(12) if abs(index - 5) <= reach
    ]
    difference[:, 1, 1] = 0
    assert not difference.any()


@pytest.mark.parametrize("name", ["conv", "attention"])
@pytest.mark.parametrize("depth", [1, 2, 17])
def test_any_depth_and_a_spacing_for_each_sample(name: str, depth: int) -> None:
    module, before = noisy(made(name)), taps(batch=2, depth=depth)
    spacing = torch.tensor([[1.0, 1.0, 1.0], [7.7, 1.0, 1.0]])
    both = module(before, spacing)[-1]
    for index in range(2):
        alone = module([tap[index : index + 1] for tap in before], tuple(spacing[index].tolist()))[-1]
        torch.testing.assert_close(both[index : index + 1], alone)


def test_attention_does_not_care_which_end_comes_first() -> None:
    module, before = noisy(made("attention")), taps()
    with torch.no_grad():
        module.query_norm.bias.copy_(module.key_norm.bias)
        module.query_norm.weight.fill_(0)
        module.key_norm.weight.fill_(0)  # scores of position alone: they depend on distances
    flipped = module([tap.flip(2) for tap in before], SPACING)[-1].flip(2)
    torch.testing.assert_close(module(before, SPACING)[-1], flipped)


def smooth_stack(slices: int, spacing_mm: float) -> torch.Tensor:
    """``(E, 2 * slices - 1)``: waves of 15 to 320 mm."""
    z_mm = torch.arange(2 * slices - 1, dtype=torch.float64) * spacing_mm / 2
    periods_mm = torch.tensor([15, 25, 40, 80, 160, 320], dtype=torch.float64)[:, None]
    amplitudes, phases = torch.randn(192, 6, 1).double(), 2 * torch.pi * torch.rand(192, 6, 1).double()
    return (amplitudes * torch.sin(2 * torch.pi * z_mm / periods_mm + phases)).sum(dim=1)


def rough_stack(slices: int, spacing_mm: float) -> torch.Tensor:
    """``(E, 2 * slices - 1)``: slices that have nothing to do with each other, resampled linearly."""
    return F.interpolate(torch.randn(1, 192, slices).double(), size=2 * slices - 1, mode="linear", align_corners=True)[
        0
    ]


@pytest.mark.parametrize("std", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("stack", [smooth_stack, rough_stack])
@pytest.mark.parametrize(("slices", "spacing_mm"), [(6, 7.7), (12, 6.0), (30, 7.7), (20, 2.0), (24, 1.0)])
def test_positions_are_millimetres(stack: object, slices: int, spacing_mm: float, std: float) -> None:
    """A 2x resampled stack: true positions change the common slices at most a fifth as much as index positions do."""
    torch.manual_seed(0)
    module = DepthAttention(FeatureSpec((192,), ((1, 8, 8),)), 3).double().eval()
    for linear in (module.query, module.key_value, module.proj):
        nn.init.normal_(linear.weight, std=std)
    fine = stack(slices, spacing_mm)[None, :, :, None, None]  # (1, E, D, 1, 1)
    reference = module([fine[:, :, ::2]], (spacing_mm, 1.0, 1.0))[-1]
    by_mm = module([fine], (spacing_mm / 2, 1.0, 1.0))[-1][:, :, ::2]
    by_index = module([fine], (spacing_mm, 1.0, 1.0))[-1][:, :, ::2]
    assert (by_index - reference).norm() > 0.01 * (reference - fine[:, :, ::2]).norm()
    assert (by_mm - reference).norm() <= 0.2 * (by_index - reference).norm()


def test_it_starts_looking_near() -> None:
    """Equal tokens: attention decreases with the distance in mm."""
    module = DepthAttention(SPEC, 2)
    positions = 5.0 * torch.arange(20.0)[None]
    rotated = module.rotate(module.query_norm.bias.detach().expand(1, 1, 20, 16), positions)[0, 0]
    scores = rotated[0] @ rotated.T
    assert (scores[:7].diff() < 0).all()


def test_only_distances_count() -> None:
    """Rotary: scores of rotated pairs depend on the difference of their angles alone."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 8)
    angles = torch.tensor([[0.3, 1.0, 2.0, 0.1]])
    shifted = [
        (rotate(query, a.cos(), a.sin()) * rotate(key, b.cos(), b.sin())).sum()
        for a, b in ((angles, 0 * angles), (3 * angles, 2 * angles))
    ]
    torch.testing.assert_close(shifted[0], shifted[1])
    torch.testing.assert_close(rotate(query, angles.cos(), angles.sin()).norm(), query.norm())


def test_blur_by_hand() -> None:
    slices = torch.tensor([[0.0, 2.0, 4.0]])
    near, far = torch.exp(torch.tensor(-0.125)), torch.exp(torch.tensor(-1.125))  # 1 and 3 mm at a std of 2 mm
    expected = torch.tensor([near / 2, near, far / 2])
    weights = blur_weights(torch.tensor([[1.0]]), slices, 2.0)
    torch.testing.assert_close(weights[0, 0], expected / expected.sum())
    assert blur_weights(slices[:, :1], slices[:, :1], 2.0).tolist() == [[[1.0]]]
    distant = blur_weights(torch.tensor([[250.0]]), 500 * slices / 2, 8.0)  # every weight alone underflows
    torch.testing.assert_close(distant, torch.tensor([[[1 / 3, 2 / 3, 0.0]]]))


def test_conv_is_a_depthwise_convolution_with_repeated_ends() -> None:
    module = DepthConv(FeatureSpec((2,), ((1, 8, 8),)), reach=1)
    with torch.no_grad():
        module.depthwise.weight.copy_(torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]]))  # previous, next
        module.depthwise.bias.zero_()
        module.proj.weight.copy_(torch.eye(2))
    tap = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 6.0]]).reshape(1, 2, 3, 1, 1)
    neighbours = torch.tensor([[1.0, 1.0, 2.0], [5.0, 6.0, 6.0]]).reshape_as(tap)
    torch.testing.assert_close(module([tap], SPACING)[0], tap + F.gelu(neighbours))


def test_backends_agree() -> None:
    before = taps()
    fused, reference = (
        noisy(DepthAttention(SPEC, 2, **kernel))(before, SPACING)[-1]
        for kernel in ({}, {"attend": reference_attention})
    )
    torch.testing.assert_close(fused, reference, rtol=0, atol=1e-10)
