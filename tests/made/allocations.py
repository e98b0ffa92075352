"""A limit of the memory that a block of a test may allocate."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

SMALL_BYTES = 40_000_000


@contextmanager
def little_memory(limit_bytes: int = SMALL_BYTES) -> Iterator[None]:
    """Fail if Python and numpy hold more than this at a time; torch's own memory does not count."""
    tracemalloc.start()
    try:
        yield
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < limit_bytes, f"{peak_bytes} bytes were allocated"
