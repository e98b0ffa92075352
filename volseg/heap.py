"""Settings of the C allocator: tensors on a CPU are faster where freed memory is kept, and smaller where it is not."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1
MEGABYTE = 1 << 20
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: LARGEST_INT, M_TOP_PAD: 64 * MEGABYTE}
RETURN = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: MEGABYTE, M_TRIM_THRESHOLD: MEGABYTE, M_TOP_PAD: 0}

_keeps = False


def reuse_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning large blocks to the system.

    By default each tensor above 32 MB is a new mapping whose pages the kernel clears: a fifth to a third of the time of
    a prediction on a CPU. In exchange peak memory is higher, by a third in `benchmarks`; in training 1.14 to 2.09 times
    that of the tensors, most with checkpointing (`benchmarks/results/training_memory/estimate.md`). It is a policy of
    the whole process, so commands call this and the library never does. Without glibc nothing happens.
    """
    global _keeps
    _keeps = _set(KEEP)


def return_freed_memory() -> bool:
    """Let glibc return every freed block of a megabyte, if a command let it keep them before.

    Returns:
        Whether this changed anything.
    """
    global _keeps
    changed = _keeps and _set(RETURN)
    _keeps = False
    return changed


def _set(values: dict[int, int]) -> bool:
    """Set parameters of glibc's malloc; return whether there is one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    return all(mallopt(parameter, value) for parameter, value in values.items())
