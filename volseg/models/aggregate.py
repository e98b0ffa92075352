"""Mixing slice tokens along depth. Every aggregator starts as the identity."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import nn

from volseg.models.attention import AttentionFunction, sdpa
from volseg.models.contracts import FeatureSpec

# Start of the query and key biases. Equal biases add the same positive, falling function of the distance to all scores,
# so that attention begins with the near slices instead of the mean of the stack.
NEARNESS = 0.7

SpacingMm = torch.Tensor | tuple[float, float, float]


class NoAggregator(nn.Module):
    """Leave the taps as they are."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, taps: list[torch.Tensor], spacing_mm: SpacingMm) -> list[torch.Tensor]:
        """``(B, E, D, h, w)`` each -> the same."""
        return taps


class DepthAttention(nn.Module):
    """Axial attention along depth over the last tap, with rotary positions in millimetres.

    Only the last tap, which carries most of what the encoder knows and enters the decoder at its deepest level, is
    mixed; the shallower taps meet their neighbours in the decoder's convolutions. That is a quarter of the cost of
    mixing all four. The output projection starts at zero: at first the result equals the input to the bit.

    Args:
        spec: The taps; passed on unchanged.
        heads: Attention heads; the width divided by the heads is a multiple of 2.
        attend: Attention kernel.
        periods_mm: Shortest and longest period of the rotation, spaced geometrically: from several thick slices (no
            aliasing) to a torso.

    Source: rotary positions, Su et al. 2021, "RoFormer"; axial attention, Ho et al. 2019.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        heads: int,
        attend: AttentionFunction = sdpa,
        periods_mm: tuple[float, float] = (60.0, 600.0),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.heads = heads
        self.attend = attend
        self.periods_mm = periods_mm
        width = spec.channels[-1]
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.qkv.weight, std=0.02)
        nn.init.zeros_(self.qkv.bias)
        nn.init.constant_(self.qkv.bias.data[: 2 * width], NEARNESS)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, taps: list[torch.Tensor], spacing_mm: SpacingMm) -> list[torch.Tensor]:
        """Mix the last tap along depth.

        Args:
            taps: ``(B, E, D, h, w)`` each.
            spacing_mm: Voxel size ``(3,)`` or ``(B, 3)``; its first entry is the distance of the slices.

        Returns:
            Taps of the same shapes.
        """
        tap = taps[-1]
        batch, _, depth, height, width = tap.shape
        tokens = rearrange(tap, "b e d h w -> (b h w) d e")
        qkv = rearrange(self.qkv(self.norm(tokens)), "n d (three a e) -> three n a d e", three=3, a=self.heads)
        angles = self.angles(depth, spacing_mm, qkv)  # (B or 1, D, E / heads / 2)
        if len(angles) > 1:
            angles = angles.repeat_interleave(height * width, dim=0)
        cosine, sine = angles.cos()[:, None].to(qkv.dtype), angles.sin()[:, None].to(qkv.dtype)
        query, key = rotate(qkv[0], cosine, sine), rotate(qkv[1], cosine, sine)
        mixed = self.proj(rearrange(self.attend(query, key, qkv[2]), "n a d e -> n d (a e)"))
        mixed = rearrange(mixed, "(b h w) d e -> b e d h w", b=batch, h=height, w=width)
        return [*taps[:-1], tap + mixed]

    def angles(self, depth: int, spacing_mm: SpacingMm, like: torch.Tensor) -> torch.Tensor:
        """Rotation of each slice and frequency in radians, ``(B or 1, D, E / heads / 2)``, float32."""
        count = like.shape[-1] // 2
        device = like.device
        shortest, longest = self.periods_mm
        steps = torch.arange(count, device=device, dtype=torch.float32) / max(1, count - 1)
        frequencies = 2 * math.pi / (shortest * (longest / shortest) ** steps)  # radians per mm
        spacing = torch.as_tensor(spacing_mm, device=device, dtype=torch.float32).reshape(-1, 3)[:, :1]
        positions_mm = spacing * torch.arange(depth, device=device)  # (B or 1, D)
        return positions_mm[..., None] * frequencies


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (i, i + E/2) of ``(..., E)`` by angles given as ``(..., E/2)`` cosine and sine."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
