"""Instance norm against float64, where torch's own channels-last kernel is a thousandth to a tenth off."""

from __future__ import annotations

import pytest
import torch

from volseg.models.kernels import InstanceNorm


def norm(channels: int) -> InstanceNorm:
    torch.manual_seed(0)
    layer = InstanceNorm(channels)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def volume(shape: tuple[int, ...], mean: float) -> torch.Tensor:
    torch.manual_seed(1)
    return (torch.randn(shape) + mean).contiguous(memory_format=torch.channels_last_3d)


def exact(layer: InstanceNorm, x: torch.Tensor) -> torch.Tensor:
    inputs = (x.double(), layer.num_groups, layer.weight.double(), layer.bias.double(), layer.eps)
    return torch.group_norm(*inputs)


@pytest.mark.parametrize(("mean", "tolerance"), [(0.5, 1e-5), (30.0, 1e-4)])
@pytest.mark.parametrize("shape", [(2, 16, 16, 64, 64), (1, 32, 8, 16, 16), (2, 3, 1, 5, 4)])
def test_exact_channels_last(shape: tuple[int, ...], mean: float, tolerance: float) -> None:
    layer, x = norm(shape[1]), volume(shape, mean)
    result = layer(x)
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(result.double(), exact(layer, x), atol=tolerance, rtol=0)
    torch.testing.assert_close(layer(x[1:] if len(x) > 1 else x)[-1], result[-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mean", [0.5, 30.0])
@pytest.mark.parametrize("shape", [(2, 4, 3, 6, 5), (2, 16, 16, 64, 64)])
def test_gradients(shape: tuple[int, ...], mean: float) -> None:
    layer, x = norm(shape[1]), volume(shape, mean).requires_grad_()
    direction = torch.randn(shape)
    found = torch.autograd.grad((layer(x) * direction).sum(), [x, layer.weight, layer.bias])
    wanted = torch.autograd.grad((exact(layer, x) * direction).sum(), [x, layer.weight, layer.bias])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mean", [0.5, 30.0])
def test_bf16_is_exact_but_for_its_own_rounding(mean: float) -> None:
    layer, x = norm(8), volume((2, 8, 16, 32, 32), mean).bfloat16().requires_grad_()
    direction = torch.randn(x.shape).bfloat16()
    result = layer(x)
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(layer(x[1:]), result[1:])
    found = torch.autograd.grad((result * direction).sum(), [x, layer.weight, layer.bias])
    assert found[0].is_contiguous(memory_format=torch.channels_last_3d)
    wanted = torch.autograd.grad((exact(layer, x) * direction).sum(), [x, layer.weight, layer.bias])
    rounding = 2**-8  # of a value that bf16 rounds once
    for ours, theirs in zip((result, *found), (exact(layer, x), *wanted), strict=True):
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error <= rounding


def test_constant_volumes_and_single_voxels_give_the_offset() -> None:
    layer = norm(3)
    for x in (torch.full((1, 3, 4, 4, 4), 1000.0), torch.ones(2, 3, 1, 1, 1)):
        result = layer(x.contiguous(memory_format=torch.channels_last_3d))
        torch.testing.assert_close(result, layer.bias.view(1, 3, 1, 1, 1).expand_as(result), atol=1e-3, rtol=0)


def test_other_formats_and_types() -> None:
    layer, x = norm(4), volume((2, 4, 3, 6, 5), 2.0)
    torch.testing.assert_close(layer(x.contiguous()), layer(x), atol=1e-5, rtol=0)
    assert layer.double()(x.double()).dtype == torch.float64
