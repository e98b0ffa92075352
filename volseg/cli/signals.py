"""Ctrl-C and SIGTERM end a command in order: what is being written is finished or taken away."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stops_in_order(advice: str) -> Iterator[None]:
    """Turns the first signal into an exception in the main thread; further ones are ignored while it is handled.

    Ctrl-C raises KeyboardInterrupt (exit code 130), SIGTERM raises SystemExit with code 143. A signal that was ignored
    before (``nohup``, a background job) stays ignored. Outside of the main thread nothing is changed.

    Args:
        advice: Logged when the block was stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    heeded = [number for number, handler in former.items() if handler is not signal.SIG_IGN]

    def stop(number: int, _: FrameType | None) -> None:
        for other in heeded:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    try:
        for number in heeded:
            signal.signal(number, stop)
        yield
    except (KeyboardInterrupt, SystemExit):
        logger.warning("stopped: %s", advice)
        raise
    finally:
        for number in heeded:
            signal.signal(number, former[number] or signal.SIG_DFL)
