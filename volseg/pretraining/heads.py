"""The projection head of DINO: from a token to scores of prototypes.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers";
github.com/facebookresearch/dinov2, ``dinov2/layers/dino_head.py``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

BOTTLENECK = 256
"""Channels of the normalised token that is compared with the prototypes."""


class Prototypes(nn.Module):
    """A linear layer without bias whose rows have a learned length that starts at 1: a weight-normed layer.

    Args:
        width: Channels of the input.
        prototypes: Outputs K.
    """

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.ones(prototypes, 1))
        self.direction = nn.Parameter(torch.empty(prototypes, width))
        nn.init.kaiming_uniform_(self.direction, a=math.sqrt(5))  # as torch's linear layers start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, E)`` -> ``(N, K)``."""
        return F.linear(x, self.length * F.normalize(self.direction, dim=1))


class DinoHead(nn.Module):
    """Three layers, the length 1, and prototypes.

    Args:
        width: Channels E of the tokens.
        hidden: Channels of the first two layers.
        prototypes: Outputs K.
    """

    def __init__(self, width: int, hidden: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, BOTTLENECK)
        )
        self.last_layer = Prototypes(BOTTLENECK, prototypes)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the scores of the prototypes: ``(N, E)`` -> ``(N, K)``."""
        return self.last_layer(F.normalize(self.mlp(tokens), dim=-1))  # type: ignore[no-any-return]
