"""Time and memory on the device that is measured, which may be a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from shared.record import cores
from volseg.device import has_native_bf16, within_recordings

PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}
MOST_WORKERS = 14


def precisions(device: str) -> list[str]:
    """Return the precisions that the device computes in."""
    return [name for name in PRECISIONS if name == "float32" or has_native_bf16(torch.device(device))]


def loader_workers() -> int:
    """Return the number of processes that cut patches: one for each core, within a limit."""
    return min(MOST_WORKERS, cores())


def synchronize(device: str) -> None:
    """Wait for all that was started on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(calls: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, float]:
    """Return the median seconds of calls that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def kernel_seconds(call: Callable[[], Any], device: str) -> float | None:
    """Return the time that a GPU spends in kernels and copies during a call, by torch's profiler; ``None`` on a CPU."""
    if not device.startswith("cuda"):
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        synchronize(device)
    return device_seconds(profiler)


def device_seconds(profiler: profile) -> float:
    """Return the sum of the times of all kernels and copies that a profiler has seen on GPUs."""
    events = profiler.key_averages()
    return sum(event.self_device_time_total for event in events if event.device_type.name == "CUDA") / 1e6


def share(part: float | None, whole: float) -> float | None:
    """Return part / whole, rounded; ``None`` if the part is not known."""
    return None if part is None else round(part / whole, 3)


def reset_peak_memory(device: str) -> None:
    """Restart the peak of `peak_memory_mb`."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: str) -> float | None:
    """Return the peak of torch's memory on a GPU in 10^6 bytes, with that of recorded steps; ``None`` on a CPU."""
    if not device.startswith("cuda"):
        return None
    recorded = within_recordings(torch.device(device))  # torch does not see what a replay writes there
    return round((torch.cuda.max_memory_allocated(device) + recorded) / 1e6, 1)
