"""Ctrl-C and SIGTERM during training: a step is finished and its checkpoint written before the run ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from volseg.parallel import end_with_parent
from volseg.training.ranks import ALONE, Ranks

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 1.0
"""A signal that comes sooner after the first is the same request: ``timeout`` and batch systems send several."""


class StopSignals:
    """Handle the signals of the main thread while it is entered.

    The first signal raises `KeyboardInterrupt` (SIGINT) or ``SystemExit(143)`` (SIGTERM): at once, or at the end of a
    :meth:`delayed` block. A second one raises at once, wherever the run is. A signal that was ignored before stays
    ignored; outside of the main thread nothing is handled.

    Several processes must stop after the same step, because each waits for the others within a step: there the first
    signal waits until they agree (:meth:`agree`), except in an :meth:`interruptible` block.

    Args:
        ranks: The processes of the run.

    Attributes:
        forced: A second signal came: the state of the run may be in the middle of a step.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.forced = False
        self._ranks = ranks
        self._first_s: float | None = None
        self._delayed = ranks.size > 1
        self._pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            previous = {number: signal.getsignal(number) for number in SIGNALS}
            self._previous = {number: each for number, each in previous.items() if each is not signal.SIG_IGN}
            for number in self._previous:
                signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Let the first signal wait until the block ends."""
        outer, self._delayed = self._delayed, True
        try:
            yield
        finally:
            self._delayed = outer
        if not self._delayed:
            self._raise_pending()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let signals interrupt a long block in which no process waits for another."""
        outer, self._delayed = self._delayed, False
        try:
            self._raise_pending()
            yield
        finally:
            self._delayed = outer

    def agree(self) -> None:
        """Stop all processes if one of them got a signal."""
        if self._ranks.size > 1:
            self._pending = int(self._ranks.largest(self._pending or 0)) or None
            self._raise_pending()

    def _raise_pending(self) -> None:
        if self._pending is not None:
            number, self._pending = self._pending, None
            _stop(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            if not self._delayed:
                _stop(number)
            self._pending = number
            logger.warning("stopping after this step; a second signal ends at once, without a checkpoint")
        elif now_s - self._first_s >= REPEAT_S:
            self.forced = True
            _stop(number)


def end_with_parent_only(_: int) -> None:
    """Let a worker of a loader ignore the signals of others: batch systems and terminals send them to all processes.

    It ends at once when the main process was killed; torch's own watch takes 5 seconds, or until a sample is made. A
    worker that dies raises an error in the main process, also in the middle of a step. The main process ends its
    workers itself when the step is done, if need be by a SIGTERM of its own. Without ``sigwaitinfo`` (macOS, Windows)
    SIGTERM keeps its meaning.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()
    end_with_parent()  # last, because threads inherit which signals are blocked


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _stop(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
