"""Attention kernels. The configuration names the kernel; it does not depend on what is installed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from volseg.errors import ConfigError
from volseg.extras import import_extra
from volseg.models.kernels import prefers_matrix_attention

AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries, keys and values ``(B, heads, N, E)`` -> mixed values of the same shape."""


class AttentionLayer(nn.Module):
    """A layer that computes attention with an exchangeable kernel.

    Attributes:
        attend: The kernel.
    """

    def __init__(self, attend: AttentionFunction) -> None:
        super().__init__()
        self.attend = attend


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute attention of ``(B, heads, N, E)`` tensors with torch's fused kernel, on every device."""
    if prefers_matrix_attention(query, key):
        return reference_attention(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def reference_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute softmax(q k' / sqrt(E)) v with the whole ``(N, N)`` matrix in memory.

    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, N, N)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    mixed: torch.Tensor = weights.to(value.dtype) @ value
    return mixed


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + E/2) of ``(..., E)`` by angles given as ``(..., E/2)`` cosine and sine."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


def _xformers() -> AttentionFunction:
    """Return the kernel of xFormers, which works on ``(B, N, heads, E)``; the swaps of axes are views.

    Source: Lefaudeux et al. 2022, "xFormers", ``xformers.ops.memory_efficient_attention``.
    """
    kernel = import_extra("xformers.ops", "xformers", "model.attention=xformers").memory_efficient_attention

    def xformers(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = kernel(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return mixed.transpose(1, 2)

    return xformers


_KERNELS: dict[str, Callable[[], AttentionFunction]] = {
    "sdpa": lambda: sdpa,
    "xformers": _xformers,
    "math": lambda: reference_attention,
}


def attention_function(name: str) -> AttentionFunction:
    """Return the kernel that a configuration names, and import its library.

    Raises:
        ConfigError: There is no such kernel, or the extra that contains it is not installed.
    """
    if name not in _KERNELS:
        raise ConfigError("model.attention has no such choice", found=name, expected=", ".join(_KERNELS))
    return _KERNELS[name]()


def try_attention(name: str, head_size: int, device: torch.device | str, dtype: torch.dtype) -> None:
    """Run a kernel once, forward and backward, on a few zeros: an installed library may not support the device.

    Args:
        name: The kernel's name in the configuration.
        head_size: Channels E per head.
        device: Where the network will run.
        dtype: Precision of queries, keys and values.

    Raises:
        ConfigError: The kernel does not support the device, the precision or the head size, or is not installed.
    """
    attend = attention_function(name)
    with torch.enable_grad():
        tokens = torch.zeros(1, 2, 8, head_size, device=device, dtype=dtype, requires_grad=True)  # (B, heads, N, E)
        try:
            torch.autograd.grad(attend(tokens, tokens, tokens).sum(), tokens)
        except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
            other = "math" if name == "sdpa" else "sdpa"
            raise ConfigError(
                f"model.attention={name} does not run here",
                found=f"device {device}, {dtype}, {head_size} channels per head: {error}",
                expected="CUDA, in a precision that the installed build supports" if name == "xformers" else None,
                hint=f"set model.attention={other}",
            ) from error
