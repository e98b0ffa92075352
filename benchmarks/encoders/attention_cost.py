"""Time and peak memory of an attention kernel, measured in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shared.measure import cost_of, timed
from volseg.models.attention import attention_function

MIB = 2**20
TIMED_CALLS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(
    kernel: str, tokens: int, backward: bool, heads: int, head_size: int, device: str, dtype: str, threads: int
) -> dict[str, float]:
    """Return the median seconds of a call, and the MiB that the first call adds to the memory held before it."""
    torch.set_num_threads(threads)
    attend = attention_function(kernel)

    def inputs(count: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(3, 1, heads, count, head_size, generator=generator)  # three of (B, heads, N, E)
        return [part.to(device, DTYPES[dtype]).requires_grad_(backward) for part in noise.unbind()]

    def call(qkv: list[torch.Tensor]) -> None:
        for part in qkv:
            part.grad = None
        mixed = attend(*qkv)
        if backward:
            mixed.backward(torch.ones_like(mixed))
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    call(inputs(16))  # libraries load at the first call
    qkv = inputs(tokens)
    peak_mib = peak_memory_mib(lambda: call(qkv), device)
    seconds, _ = timed(lambda: call(qkv), TIMED_CALLS)
    return {"seconds": seconds, "peak_mib": peak_mib}


def peak_memory_mib(call: Callable[[], None], device: str) -> float:
    """Return the peak of a call above the memory held before it: of the allocator on CUDA, else resident memory."""
    if not device.startswith("cuda"):
        cost, _ = cost_of(call)
        return cost.above_bytes / MIB
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / MIB
