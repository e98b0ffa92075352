"""Mixing slice tokens along depth. Every aggregator starts as the identity.

All of them mix the last tap only, which has most of the encoder's information and enters the decoder at its deepest
level. The decoder's convolutions mix the shallower taps along depth. That costs a quarter of mixing all four taps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from volseg.models.attention import AttentionFunction, AttentionLayer, rotate, sdpa
from volseg.models.contracts import FeatureSpec, SpacingMm

NEARNESS = 0.7
"""Initial query and key offsets. Equal offsets add the same positive, decreasing function of distance to all scores, so
that attention starts with the near slices instead of the mean of the stack."""
CONTENT = 0.5
"""Initial query and key scales: the content of the tokens counts less than their distance."""


class NoAggregator(nn.Module):
    """Leave the taps as they are.

    Attributes:
        spec: Channels and strides of the taps.
        reach: Slices to each side that change a token; ``None`` is the whole stack.
    """

    reach: int | None = 0

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, taps: list[torch.Tensor], spacing_mm: SpacingMm) -> list[torch.Tensor]:
        """Return the taps, ``(B, E, D, h, w)`` each."""
        return taps


class DepthConv(nn.Module):
    """Depthwise convolution along depth, GELU and a projection, over the last tap.

    Its kernel is in slices, not in millimetres, so weights trained at one spacing are not valid at another. The end
    slices are repeated, as in the decoder's padding. The projection starts at zero: the initial result is bitwise
    identical to the input.

    Args:
        spec: Channels and strides of the taps; the output has the same.
        reach: Slices to each side that change a token.

    Source: the depthwise-separable convolution of Howard et al. 2017, "MobileNets".
    """

    def __init__(self, spec: FeatureSpec, reach: int = 2) -> None:
        super().__init__()
        self.spec = spec
        self.reach = reach
        width = spec.channels[-1]
        self.depthwise = nn.Conv1d(width, width, 2 * reach + 1, groups=width)
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, taps: list[torch.Tensor], spacing_mm: SpacingMm) -> list[torch.Tensor]:
        """Mix the last tap along depth: ``(B, E, D, h, w)`` each -> the same shapes; the spacing is not used."""
        tap = taps[-1]
        batch, _, _, height, width = tap.shape
        columns = rearrange(tap, "b e d h w -> (b h w) e d")
        mixed = self.depthwise(F.pad(columns, (self.reach, self.reach), mode="replicate"))
        mixed = self.proj(F.gelu(rearrange(mixed, "n e d -> n d e")))
        mixed = rearrange(mixed, "(b h w) d e -> b e d h w", b=batch, h=height, w=width)
        return [*taps[:-1], tap + mixed]


class DepthAttention(AttentionLayer):
    """Axial attention along depth over the last tap, with rotary positions in millimetres.

    The softmax over slices approximates an integral over millimetres, so that a stack resampled along depth gives the
    same result. The approximation needs scores and values that change little from slice to slice. Two properties ensure
    this for any weights: keys and values come from the stack blurred by ``blur_mm``, and queries and keys are
    normalised, so that no slice can outweigh all others. Keys and values are sampled midway between the slices, which
    covers the stack from its first to its last slice with equal weights at any spacing. Detail is kept by the residual
    and by the queries, which are not blurred. The output projection starts at zero: the initial result is bitwise
    identical to the input.

    Args:
        spec: Channels and strides of the taps; the output has the same.
        heads: Attention heads; the width divided by the heads is a multiple of 2.
        attend: Attention kernel.
        periods_mm: Shortest and longest period of the rotation, spaced geometrically: from several thick slices (no
            aliasing) to a torso.
        blur_mm: Standard deviation of the Gaussian, about one thick slice.

    Source: rotary positions, Su et al. 2021, "RoFormer"; axial attention, Ho et al. 2019; normalised queries and keys,
    Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters".
    """

    reach: int | None = None

    def __init__(
        self,
        spec: FeatureSpec,
        heads: int,
        attend: AttentionFunction = sdpa,
        periods_mm: tuple[float, float] = (60.0, 600.0),
        blur_mm: float = 8.0,
    ) -> None:
        super().__init__(attend)
        self.spec = spec
        self.heads = heads
        self.periods_mm = periods_mm
        self.blur_mm = blur_mm
        width = spec.channels[-1]
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.query_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.key_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.proj = nn.Linear(width, width)
        for linear in (self.query, self.key_value):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        for norm in (self.query_norm, self.key_norm):
            nn.init.constant_(norm.weight, CONTENT)
            nn.init.constant_(norm.bias, NEARNESS)
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
        slices = positions_mm(depth, spacing_mm, tap.device)  # (B or 1, D)
        if len(slices) > 1:
            slices = slices.repeat_interleave(height * width, dim=0)
        between = (slices[:, 1:] + slices[:, :-1]) / 2 if depth > 1 else slices  # (B * h * w or 1, D - 1)
        blurred = blur_weights(between, slices, self.blur_mm).to(tokens.dtype) @ tokens
        query = rearrange(self.query(self.norm(tokens)), "n d (a e) -> n a d e", a=self.heads)
        key, value = rearrange(self.key_value(self.norm(blurred)), "n d (two a e) -> two n a d e", two=2, a=self.heads)
        query = self.rotate(self.query_norm(query), slices)
        key = self.rotate(self.key_norm(key), between)
        mixed = self.proj(rearrange(self.attend(query, key, value), "n a d e -> n d (a e)"))
        mixed = rearrange(mixed, "(b h w) d e -> b e d h w", b=batch, h=height, w=width)
        return [*taps[:-1], tap + mixed]

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate ``(N, heads, D, E / heads)`` to positions ``(N or 1, D)`` in mm."""
        angles = self.angles(positions, x.shape[-1] // 2)[:, None]
        return rotate(x, angles.cos().to(x.dtype), angles.sin().to(x.dtype))

    def angles(self, positions: torch.Tensor, count: int) -> torch.Tensor:
        """Return the rotation in radians of each position ``(..., D)`` in mm at each frequency: ``(..., D, count)``."""
        shortest, longest = self.periods_mm
        steps = torch.arange(count, device=positions.device, dtype=torch.float32) / max(1, count - 1)
        frequencies = 2 * math.pi / (shortest * (longest / shortest) ** steps)  # radians per mm
        return positions[..., None] * frequencies


def positions_mm(depth: int, spacing_mm: SpacingMm, device: torch.device) -> torch.Tensor:
    """Return the positions of the slices along depth: ``(B or 1, D)`` in mm, float32."""
    slices = torch.arange(depth, device=device, dtype=torch.float32)[None]
    if isinstance(spacing_mm, torch.Tensor):
        return spacing_mm.to(device, torch.float32).reshape(-1, 3)[:, :1] * slices
    return spacing_mm[0] * slices


def blur_weights(at: torch.Tensor, slices: torch.Tensor, blur_mm: float) -> torch.Tensor:
    """Return the Gaussian weights of slices at ``(..., D)`` mm for points at ``(..., M)`` mm: ``(..., M, D)``.

    Rows sum to 1. The end slices count half (trapezoidal rule), so that a stack with more slices in between has the
    same integral.
    """
    exponents = -0.5 * ((at[..., :, None] - slices[..., None, :]) / blur_mm) ** 2
    if exponents.shape[-1] > 1:
        exponents[..., 0] += math.log(0.5)
        exponents[..., -1] += math.log(0.5)
    return exponents.softmax(dim=-1)
