"""Wall time per stage, for stages that are nested."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class StageTimer:
    """Timer that adds time to the innermost running stage only.

    Attributes:
        seconds: Wall time of each stage so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._last_time = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``; the enclosing stage pauses."""
        self._add_elapsed()
        self._running.append(name)
        try:
            yield
        finally:
            self._add_elapsed()
            self._running.pop()

    def each(self, name: str, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the same items; add the time that producing them takes to ``name``."""
        while True:
            with self.stage(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _add_elapsed(self) -> None:
        """Add the time since the last call to the innermost stage."""
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last_time
        self._last_time = now
