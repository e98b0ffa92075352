"""Attention kernels. Which one runs is set in the config, never found out by importing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from volseg.errors import ConfigError

AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Fused attention of ``(B, heads, N, E)`` tensors, on every device."""
    return F.scaled_dot_product_attention(query, key, value)


def math(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Reference: softmax(q k' / sqrt(E)) v with the whole ``(N, N)`` matrix in memory.

    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, N, N)
    mixed: torch.Tensor = scores.softmax(dim=-1) @ value
    return mixed


_KERNELS: dict[str, AttentionFunction] = {"sdpa": sdpa, "math": math}


def attention_function(name: str) -> AttentionFunction:
    """The kernel a config names.

    Raises:
        ConfigError: There is no such kernel.
    """
    if name not in _KERNELS:
        raise ConfigError("model.attention has no such choice", found=name, expected=", ".join(_KERNELS))
    return _KERNELS[name]
