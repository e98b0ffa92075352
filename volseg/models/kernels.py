"""Device-specific code of the networks: layers that choose the fastest exact kernel of their device.

Each layer has the parameters and the results of the torch layer that it replaces, so that no other file of the networks
depends on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

SHORT = 64
"""Tokens up to which the whole attention matrix is faster in bf16 on a CPU; it is smaller than the tokens there."""


def mean_of_slices(x: torch.Tensor, count: int) -> torch.Tensor:
    """Average groups of ``count`` slices: ``(B, C, D, H, W)`` -> ``(B, C, D / count, H, W)``.

    The gradient of torch's pooling is not deterministic on CUDA; a plain mean replaces it where that matters.
    """
    if torch.are_deterministic_algorithms_enabled():
        return x.unflatten(2, (-1, count)).mean(dim=3)  # type: ignore[no-untyped-call, no-any-return]
    return F.avg_pool3d(x, (count, 1, 1))


def prefers_matrix_attention(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Return whether two matrix products are faster than torch's fused attention: short sequences in bf16 on a CPU.

    The backward pass of the fused kernel takes ten times as long there.

    Args:
        query: ``(B, heads, N, E)``.
        key: ``(B, heads, M, E)``.
    """
    short = max(query.shape[-2], key.shape[-2]) <= SHORT
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and short


def to_channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return ``(B, C, D, H, W)`` with the channels of a voxel side by side; every later layer keeps the format.

    On a CPU, convolutions in this format are faster, and the sums of `InstanceNorm` are matrix products. (`contiguous`
    would not change the strides of a single channel.)
    """
    return x.to(memory_format=torch.channels_last_3d)


class PatchConv(nn.Conv2d):
    """Convolution of patches that do not overlap.

    It is one matrix product, and computed as such in bf16 on a CPU, where the backward pass of the convolution takes
    many times as long. In float32 both take the same time, and the convolution rounds as other implementations do.
    """

    def __init__(self, in_channels: int, width: int, patch: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, width, kernel_size=patch, stride=patch, bias=bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> ``(B, E, h, w)``."""
        if not torch.is_autocast_enabled("cpu") or images.device.type != "cpu":
            return super().forward(images)
        height, width = self.kernel_size
        patches = rearrange(images, "b c (h p) (w q) -> b h w (c p q)", p=height, q=width)
        return rearrange(F.linear(patches, self.weight.flatten(1), self.bias), "b h w e -> b e h w")


class PointwiseConv(nn.Linear):
    """1x1x1 convolution as one matrix product: a fifth of Conv3d's time on a CPU with channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, D, H, W)`` -> ``(B, C', D, H, W)``."""
        outputs = super().forward(rearrange(x, "b c d h w -> b d h w c"))
        return rearrange(outputs, "b d h w c -> b c d h w")


class Conv3d(nn.Conv3d):
    """3D convolution without a bias that uses oneDNN's kernel for a single small volume too.

    For a batch of one with few voxels `torch.conv3d` falls back to a plain matrix product on the CPU, two to four times
    slower. Prediction calls the kernel that the larger batches of training get.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, D, H, W)`` -> ``(B, C', D', H', W')``."""
        fast = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
        if not (fast and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
            return super().forward(x)
        padding, stride, dilation = self.padding, self.stride, self.dilation
        result: torch.Tensor = torch.ops.aten.mkldnn_convolution(x, self.weight, None, padding, stride, dilation, 1)
        return result


class InstanceNorm(nn.GroupNorm):
    """Instance norm with learned scale and offset, as group norm with one channel per group.

    The same numbers as `torch.nn.InstanceNorm3d`; a map of one voxel becomes the offset instead of an error.

    In float32 and channels last, torch's group norm on the CPU computes the variance as a difference of two long sums:
    it is 1e-3 off on a window of 32x128x128 voxels, and a tenth where the mean is thirty times the deviation, as in a
    window that is nearly all air. Here the sums are matrix products over centred values, at about 1.3 times the time.

    In bf16 the backward pass of group norm takes 30 times that of torch's batch norm, which is exact there, and is
    instance norm for one volume at a time.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, D, H, W)`` -> the same shape and memory format."""
        last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
        norm = {torch.float32: _ChannelsLastNorm, torch.bfloat16: _VolumeByVolume}.get(x.dtype)
        if x.device.type == "cpu" and last and norm is not None:
            return norm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-any-return, no-untyped-call]
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _ChannelsLastNorm(torch.autograd.Function):
    """Instance norm whose sums over voxels are matrix products; backward in a quarter of torch's group norm's time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        voxels = _voxels(x)
        count = voxels.shape[1]
        ones = torch.ones((1, count))
        mean = torch.matmul(ones, voxels) / count  # (B, 1, C)
        result = torch.empty_like(x)
        centred = torch.sub(voxels, mean, out=_voxels(result))
        rest = torch.matmul(ones, centred) / count  # what rounding has left of the mean
        variance = _sum_of_products(centred, centred) / count - rest.square()
        inverse = torch.rsqrt(variance.clamp_min(0) + eps)
        scale = weight * inverse
        if weight.requires_grad or x.requires_grad:
            ctx.save_for_backward(x, mean + rest, inverse, weight)
        torch.addcmul(bias - rest * scale, centred, scale, out=centred)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, mean, inverse, weight = ctx.saved_tensors
        voxels = _voxels(x)
        gradient = _voxels(gradients[0].contiguous(memory_format=torch.channels_last_3d))
        count = voxels.shape[1]
        to_x = torch.empty_like(x)
        centred = torch.sub(voxels, mean, out=_voxels(to_x))
        to_bias = torch.matmul(torch.ones((1, count)), gradient)  # (B, 1, C), summed over the batch below
        to_weight = _sum_of_products(gradient, centred) * inverse
        # weight * inverse * (gradient - mean(gradient) - normalised * mean(gradient * normalised)), in two passes
        scale = weight * inverse
        torch.addcmul(-scale * to_bias / count, centred, -scale * inverse * to_weight / count, out=centred)
        centred.addcmul_(gradient, scale)
        return to_x, to_weight.sum(dim=(0, 1)), to_bias.sum(dim=(0, 1)), None


class _VolumeByVolume(torch.autograd.Function):
    """Batch norm of each volume on its own, forward and backward, written in place into the batch's map."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        result, statistics = torch.empty_like(x), []
        for volume, target in _volumes(x, result):
            normed, *of_volume = torch.native_batch_norm(volume, weight, bias, None, None, True, 0.0, eps)
            target.copy_(normed)
            statistics.append(of_volume)
        ctx.save_for_backward(x, weight)
        ctx.statistics, ctx.eps = statistics, eps
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last_3d)
        to_x, to_weight, to_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        for (slope, volume, target), (mean, inverse) in zip(_volumes(gradient, x, to_x), ctx.statistics, strict=True):
            slopes = torch.ops.aten.native_batch_norm_backward(
                slope, volume, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
            )
            target.copy_(slopes[0])
            to_weight += slopes[1]
            to_bias += slopes[2]
        return to_x, to_weight, to_bias, None


def _volumes(*batches: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Iterate over the volumes ``(1, C, D, H, W)`` of batches of the same length, side by side, as views."""
    return zip(*([batch[i : i + 1] for i in range(len(batch))] for batch in batches), strict=True)


def _voxels(x: torch.Tensor) -> torch.Tensor:
    """View ``(B, C, D, H, W)`` in channels-last memory as ``(B, N, C)``, without a copy."""
    return x.permute(0, 2, 3, 4, 1).view(len(x), -1, x.shape[1])


def _sum_of_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum products over voxels, per channel: ``(B, N, C)`` twice -> ``(B, 1, C)``."""
    return torch.bmm(a.transpose(1, 2), b).diagonal(dim1=1, dim2=2)[:, None]
