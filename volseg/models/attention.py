"""Attention kernels. The configuration names the kernel; it does not depend on what is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend

from volseg.errors import ConfigError
from volseg.models.kernels import prefers_matrix_attention
from volseg.models.xformers_kernel import library_error, xformers_kernel

_NO_REASON = re.compile(r"^\w+ +: |is not supported because:$")
"""Lines of an error of xFormers that describe an input or begin the reasons of an operator."""
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


_KERNELS: dict[str, Callable[[], AttentionFunction]] = {
    "sdpa": lambda: sdpa,
    "xformers": xformers_kernel,
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
            missing = library_error() if name == "xformers" else None
            reason = f"its library does not load: {missing}" if missing else _in_a_line(str(error))
            raise ConfigError(
                f"model.attention={name} does not run here",
                found=f"device {device}, {dtype}, {head_size} channels per head: {reason}",
                expected="CUDA, in a precision that the installed build supports" if name == "xformers" else None,
                hint=f"set model.attention={other}",
            ) from error


def kernel_states(head_size: int, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Return for every kernel whether it runs, or why it does not, in words.

    Args:
        head_size: Channels E per head.
        device: Where the network would run; it need not be here.
        dtype: Precision of queries, keys and values.
    """
    return {name: _state(name, head_size, device, dtype) for name in _KERNELS}


def _state(name: str, head_size: int, device: torch.device, dtype: torch.dtype) -> str:
    """Return whether a kernel runs, or why it does not; see `kernel_states`."""
    if name == "xformers" and device.type != "cuda":
        return "does not run: it needs a device with CUDA"
    if name == "xformers" and find_spec("xformers") is None:
        return "does not run: it is not installed (pip install 'volseg[xformers]')"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "not tried: torch finds no GPU with CUDA here"
    try:
        try_attention(name, head_size, device, dtype)
    except ConfigError as error:
        return f"does not run: {error.found or error.problem}"
    return f"runs{_torch_kernel(head_size, device, dtype) if name == 'sdpa' else ''}"


def _torch_kernel(head_size: int, device: torch.device, dtype: torch.dtype) -> str:
    """Return which of its kernels torch chooses for `sdpa`; nothing where torch does not tell (mps)."""
    if device.type not in ("cpu", "cuda"):
        return ""
    tokens = torch.zeros(1, 2, 8, head_size, device=device, dtype=dtype)
    if prefers_matrix_attention(tokens, tokens):
        return ""
    kernel = SDPBackend(torch._fused_sdp_choice(tokens, tokens, tokens))
    return f" ({kernel.name.lower().replace('_', ' ')})"


def _in_a_line(text: str) -> str:
    """Return the reasons in an error's text in one line; xFormers lists the inputs, and reasons for each operator."""
    lines = [line.strip() for line in text.splitlines()]
    reasons = [line for line in lines if line and not _NO_REASON.search(line)]
    return "; ".join(dict.fromkeys(reason.removesuffix(" with inputs:") for reason in reasons))
