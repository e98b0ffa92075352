"""From a volume to slice images and from slice tokens back to a volume."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from volseg.models.contracts import FeatureSpec
from volseg.models.encoders.dinov2 import DinoV2, tap_indices
from volseg.models.encoders.layers import PATCH

CHUNK_PIXELS = (
    16 * 518 * 518
)  # pixels encoded at once where activations are not kept; bounds the memory of a deep volume


def slice_channels(image_channels: int, adjacent_slices: int) -> int:
    """Channels of the slice images made by `gather_slices`."""
    return image_channels * (2 if adjacent_slices > 1 else 1)


def gather_slices(x: torch.Tensor, adjacent_slices: int) -> torch.Tensor:
    """Every slice, with its neighbours as channels.

    The previous and the next slice share their patch-embedding weights. As the embedding is linear, this is the same
    as embedding their sum, so the sum is the channel: a flip along depth reverses the slices and changes nothing else.

    Args:
        x: ``(B, C, D + 2r, H, W)`` with ``r = (adjacent_slices - 1) // 2``.
        adjacent_slices: 1 or 3.

    Returns:
        ``(B * D, C, H, W)``; with neighbours ``(B * D, 2 C, H, W)``: the slice, then previous + next.
    """
    if adjacent_slices > 1:
        x = torch.cat([x[:, :, 1:-1], x[:, :, :-2] + x[:, :, 2:]], dim=1)
    return rearrange(x, "b c d h w -> (b d) c h w")


def resize_slices(images: torch.Tensor, token_stride: int) -> torch.Tensor:
    """Scale by 14 / token_stride, so that one 14x14 patch covers token_stride x token_stride voxels exactly."""
    size = [side // token_stride * PATCH for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


class SliceEncoder(nn.Module):
    """Encode every slice of a volume once.

    Args:
        vit: The transformer, with as many input channels as `slice_channels` says.
        token_stride: Voxels per token in plane.
        adjacent_slices: Slices that enter as channels (1 or 3).
        taps: Blocks whose tokens are kept, evenly spaced, the last included; at most one for each block.
    """

    def __init__(self, vit: DinoV2, token_stride: int, adjacent_slices: int, taps: int = 4) -> None:
        super().__init__()
        self.vit = vit
        self.token_stride = token_stride
        self.adjacent_slices = adjacent_slices
        self.frozen = False
        self.tap_indices = tap_indices(len(vit.blocks), taps)
        count = len(self.tap_indices)
        self.spec = FeatureSpec((vit.variant.width,) * count, ((1, token_stride, token_stride),) * count)

    def train(self, mode: bool = True) -> SliceEncoder:
        """Training mode; a frozen encoder stays in evaluation mode (no stochastic depth)."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """``(B, C, D + 2r, H, W)`` -> taps ``(B, E, D, h, w)``; H and W are multiples of the token stride."""
        height, width = (side // self.token_stride for side in x.shape[-2:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            slices = gather_slices(x, self.adjacent_slices)  # (B * D, C', H, W)
            size = self._chunk_size(slices, height * width)
            chunks = [self._encode(chunk) for chunk in torch.split(slices, size)]
            taps = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*chunks, strict=True)]
        return [rearrange(tap, "(b d) (h w) e -> b e d h w", b=len(x), h=height, w=width) for tap in taps]

    def _encode(self, slices: torch.Tensor) -> list[torch.Tensor]:
        return self.vit.taps(resize_slices(slices, self.token_stride), self.tap_indices)

    def _chunk_size(self, slices: torch.Tensor, tokens: int) -> int:
        if torch.is_grad_enabled() and not self.vit.checkpoint_blocks:
            return len(slices)
        return max(1, CHUNK_PIXELS // (tokens * PATCH * PATCH))
