"""Keep freed memory for the next tensor, where the system's allocator can be told to."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
LARGEST_INT = 2**31 - 1
TOP_PAD_BYTES = 64 << 20


def reuse_freed_memory() -> None:
    """Tell glibc not to give large blocks back to the system one by one.

    By default every tensor above 32 MB is mapped anew, and the kernel clears its pages when they are first touched: a
    fifth to a third of prediction's time on a CPU. In exchange the peak of memory is higher, by a third where it was
    measured (`benchmarks/memory.py`). It is a policy of the process, so commands ask for it and the library never does.
    Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        mallopt(M_TOP_PAD, TOP_PAD_BYTES)
