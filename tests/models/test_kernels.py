"""Layers with kernels of their own against torch's layers, and instance norm against float64."""

from __future__ import annotations

import pytest
import torch

from volseg.models.encoders.layers import PatchEmbed
from volseg.models.kernels import Conv3d, InstanceNorm, PointwiseConv


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
    torch.testing.assert_close(layer(x[1:] if len(x) > 1 else x)[-1], result[-1], atol=1e-6, rtol=1e-6)  # rounding


@pytest.mark.parametrize("mean", [0.5, 30.0])
@pytest.mark.parametrize("shape", [(2, 4, 3, 6, 5), (2, 16, 16, 64, 64)])
def test_gradients(shape: tuple[int, ...], mean: float) -> None:
    layer, x = norm(shape[1]), volume(shape, mean).requires_grad_()
    direction = torch.randn(shape)
    ours = torch.autograd.grad((layer(x) * direction).sum(), [x, layer.weight, layer.bias])
    theirs = torch.autograd.grad((exact(layer, x) * direction).sum(), [x, layer.weight, layer.bias])
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mean", [0.5, 30.0])
def test_bf16_is_exact_but_for_its_own_rounding(mean: float) -> None:
    layer, x = norm(8), volume((2, 8, 16, 32, 32), mean).bfloat16().requires_grad_()
    direction = torch.randn(x.shape).bfloat16()
    result = layer(x)
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(layer(x[1:]), result[1:])
    ours = torch.autograd.grad((result * direction).sum(), [x, layer.weight, layer.bias])
    assert ours[0].is_contiguous(memory_format=torch.channels_last_3d)
    theirs = torch.autograd.grad((exact(layer, x) * direction).sum(), [x, layer.weight, layer.bias])
    rounding = 2**-8  # of a value that bf16 rounds once
    for value, expected in zip((result, *ours), (exact(layer, x), *theirs), strict=True):
        error = (value - expected).abs().max() / expected.abs().max()
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


def test_instance_norm_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(4).double(), torch.nn.InstanceNorm3d(4, affine=True).double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    x = 3 + 2 * torch.randn(2, 4, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[:1, :, :1, :1, :1]).flatten(), ours.bias)  # one voxel


def test_pointwise_is_a_1x1x1_convolution() -> None:
    torch.manual_seed(0)
    ours, theirs = PointwiseConv(3, 5), torch.nn.Conv3d(3, 5, 1)
    theirs.load_state_dict({"weight": ours.weight[:, :, None, None, None], "bias": ours.bias})
    x = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize("shape", [(1, 1, 4, 9, 8), (1, 16, 3, 5, 6), (2, 16, 8, 20, 17)])
def test_convolution_without_a_graph_is_the_same(shape: tuple[int, ...], stride: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    conv = Conv3d(shape[1], 8, 3, stride, 1, bias=False)
    for x in (torch.randn(shape), torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)):
        expected = torch.nn.functional.conv3d(x, conv.weight, None, stride, 1)
        with torch.inference_mode():
            torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)
        assert conv(x).requires_grad


def test_the_patch_embedding_in_bf16_is_that_of_float32() -> None:
    torch.manual_seed(0)
    embed, images = PatchEmbed(2, 16, 14), torch.randn(3, 2, 28, 42)
    exact = embed(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = embed(images)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.02 * float(exact.detach().abs().max()))
