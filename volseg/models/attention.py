"""Attention kernels. Which one runs is set in the config, never found out by importing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from volseg.errors import ConfigError
from volseg.extras import import_extra

SHORT = 64
"""Tokens up to which the whole matrix is the faster way in bf16 on a CPU; there it takes less room than the tokens."""

AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Fused attention of ``(B, heads, N, E)`` tensors, on every device.

    torch's fused kernel for bf16 on a CPU needs ten times the time of two matrix products for a short sequence's
    backward pass.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and max(query.shape[-2], key.shape[-2]) <= SHORT:
        return math(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def math(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Reference: softmax(q k' / sqrt(E)) v with the whole ``(N, N)`` matrix in memory.

    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, N, N)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    mixed: torch.Tensor = weights.to(value.dtype) @ value
    return mixed


def _xformers() -> AttentionFunction:
    """The kernel of xFormers, which takes and gives ``(B, N, heads, E)``; the swaps of axes are views.

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
    "math": lambda: math,
}


def attention_function(name: str) -> AttentionFunction:
    """The kernel a config names; its library is imported only now.

    Raises:
        ConfigError: There is no such kernel, or the extra that holds it is not installed.
    """
    if name not in _KERNELS:
        raise ConfigError("model.attention has no such choice", found=name, expected=", ".join(_KERNELS))
    return _KERNELS[name]()


def try_attention(name: str, head_size: int, device: torch.device | str, dtype: torch.dtype) -> None:
    """Run a kernel once, forward and backward, on a few zeros: an installed library may have none for this device.

    Args:
        name: The kernel a config names.
        head_size: Channels E of a head.
        device: Where the network will run.
        dtype: In what precision queries, keys and values will arrive.

    Raises:
        ConfigError: The kernel refuses the device, the precision or the head size, or is not installed.
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
                found=f"device {device}, {dtype}, {head_size} channels a head: {error}",
                expected="CUDA, in a precision that the installed build supports" if name == "xformers" else None,
                hint=f"set model.attention={other}",
            ) from error
