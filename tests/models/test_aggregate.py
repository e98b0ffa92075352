"""Depth attention: identity at the start, millimetres, any depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volseg.models.aggregate import DepthAttention, NoAggregator, rotate
from volseg.models.attention import math as math_attention
from volseg.models.contracts import FeatureSpec

SPEC = FeatureSpec((32, 32), ((1, 8, 8),) * 2)


def noisy(attend: object = None) -> DepthAttention:
    torch.manual_seed(0)
    module = DepthAttention(SPEC, 2, **({"attend": attend} if attend else {})).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def taps(batch: int = 1, depth: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(batch, 32, depth, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_it_starts_as_the_identity_to_the_bit() -> None:
    before = taps()
    after = DepthAttention(SPEC, 2).double()(before, (3.0, 1.0, 1.0))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert NoAggregator(SPEC)(before, (3.0, 1.0, 1.0)) is before


def test_only_columns_along_depth_are_mixed() -> None:
    module, before = noisy(), taps()
    changed = [tap.clone() for tap in before]
    changed[-1][:, :16, 2, 1, 1] += 1
    spacing = (3.0, 1.0, 1.0)
    difference = (module(changed, spacing)[-1] - module(before, spacing)[-1]).abs().amax(dim=(0, 1))  # (D, h, w)
    assert (difference[:, 1, 1] > 1e-4).all()
    difference[:, 1, 1] = 0
    assert not difference.any()


@pytest.mark.parametrize(("slices", "spacing_mm"), [(12, 6.0), (32, 6.0), (20, 2.0)])
def test_positions_are_millimetres(slices: int, spacing_mm: float) -> None:
    """A 2x resampled stack: true positions change the common slices at most a fifth as much as index positions do."""
    torch.manual_seed(0)
    module = DepthAttention(FeatureSpec((192,), ((1, 8, 8),)), 3).double().eval()
    nn.init.normal_(module.proj.weight, std=0.02)
    z_mm = torch.arange(2 * slices - 1, dtype=torch.float64) * spacing_mm / 2
    periods_mm = torch.tensor([15, 25, 40, 80, 160, 320], dtype=torch.float64)[:, None]
    amplitudes, phases = torch.randn(192, 6, 1).double(), 2 * torch.pi * torch.rand(192, 6, 1).double()
    waves = amplitudes * torch.sin(2 * torch.pi * z_mm / periods_mm + phases)
    fine = waves.sum(dim=1)[None, :, :, None, None]  # (1, E, D, 1, 1), smooth along depth
    reference = module([fine[:, :, ::2]], (spacing_mm, 1.0, 1.0))[-1]
    by_mm = module([fine], (spacing_mm / 2, 1.0, 1.0))[-1][:, :, ::2]
    by_index = module([fine], (spacing_mm, 1.0, 1.0))[-1][:, :, ::2]
    assert (by_mm - reference).norm() <= 0.2 * (by_index - reference).norm()


def test_it_starts_looking_near() -> None:
    """Equal tokens: attention falls off with the distance in mm, whatever the content."""
    module = DepthAttention(SPEC, 2)
    angles = module.angles(20, (5.0, 1.0, 1.0), torch.zeros(1, 16))[0]
    query = module.qkv.bias.detach()[:16].expand(20, 16)
    rotated = rotate(query, angles.cos(), angles.sin())
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


@pytest.mark.parametrize("depth", [1, 2, 17])
def test_any_depth_and_a_spacing_for_each_sample(depth: int) -> None:
    module, before = noisy(), taps(batch=2, depth=depth)
    spacing = torch.tensor([[1.0, 1.0, 1.0], [7.7, 1.0, 1.0]])
    both = module(before, spacing)[-1]
    for index in range(2):
        alone = module([tap[index : index + 1] for tap in before], tuple(spacing[index].tolist()))[-1]
        torch.testing.assert_close(both[index : index + 1], alone)


def test_backends_agree() -> None:
    before = taps()
    fused, reference = (noisy(attend)(before, (3.0, 1.0, 1.0))[-1] for attend in (None, math_attention))
    torch.testing.assert_close(fused, reference, rtol=0, atol=1e-10)
