"""The layers of vision transformers, with the attribute names of DINOv2.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Oquab et al. 2023, "DINOv2";
github.com/facebookresearch/dinov2, ``dinov2/layers``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from volseg.models.attention import AttentionFunction, AttentionLayer
from volseg.models.kernels import PatchConv

Activation = Callable[[torch.Tensor], torch.Tensor]


class PatchEmbed(nn.Module):
    """Cut an image into square patches and project each to a token."""

    def __init__(self, in_channels: int, width: int, patch: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = PatchConv(in_channels, width, patch, bias=bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> ``(B, h * w, E)``."""
        return rearrange(self.proj(images), "b e h w -> b (h w) e")  # type: ignore[no-any-return]


class Attention(AttentionLayer):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, attend: AttentionFunction) -> None:
        super().__init__(attend)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, E)`` -> ``(B, N, E)``."""
        query, key, value = rearrange(self.qkv(x), "b n (three h e) -> three b h n e", three=3, h=self.heads)
        return self.proj(rearrange(self.attend(query, key, value), "b h n e -> b n (h e)"))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two layers with an activation between, GELU by default."""

    def __init__(self, width: int, hidden: int, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., E)`` -> ``(..., E)``."""
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class SwiGlu(nn.Module):
    """Gated feed-forward layer; two thirds of the MLP's hidden size, rounded up to a multiple of 8.

    Source: Shazeer 2020, "GLU Variants Improve Transformer"; hidden size as in DINOv2's ``SwiGLUFFNFused``.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., E)`` -> ``(..., E)``."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch.

    It starts at 1. Official weights overwrite it, and a few random blocks need no damping: with the 1e-5 of very deep
    networks, the blocks of a small one would change nothing for the first thousands of steps.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., E)`` -> ``(..., E)``."""
        return x * self.gamma


class DropPath(nn.Module):
    """Skip a residual branch for random samples in training.

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth".
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, E)`` -> ``(B, N, E)``."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth.

    Args:
        width: Channels E.
        attention: Mixes the tokens.
        mlp: Works on each token.
        eps: Epsilon of the norms.
        drop_path: Stochastic-depth rate.
        scaled: Whether the residual branches have a LayerScale.
    """

    def __init__(
        self,
        width: int,
        attention: nn.Module,
        mlp: nn.Module,
        *,
        eps: float,
        drop_path: float = 0.0,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.ls1 = LayerScale(width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.ls2 = LayerScale(width) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        """``(B, N, E)``, and what the attention needs beside it -> ``(B, N, E)``."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), *more)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))  # type: ignore[no-any-return]
