"""Orderly end of a command on Ctrl-C and SIGTERM: files that are being written are finished or removed."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stops_in_order(advice: str | Callable[[], str] | None) -> Iterator[None]:
    """Turn the first signal into an exception in the main thread; ignore further ones while it is handled.

    Ctrl-C raises KeyboardInterrupt (exit code 130), SIGTERM raises SystemExit with code 143. A signal that was ignored
    before (``nohup``, a background job) stays ignored. Outside of the main thread nothing changes.

    Args:
        advice: Logged when the block is interrupted, if there is one; or a function that returns it then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]

    def stop(number: int, _: FrameType | None) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    try:
        for number in handled:
            signal.signal(number, stop)
        yield
    except (KeyboardInterrupt, SystemExit):
        if advice is not None:
            logger.warning("stopped: %s", advice() if callable(advice) else advice)
        raise
    finally:
        for number in handled:
            signal.signal(number, previous[number] or signal.SIG_DFL)


def exit_after(stop: KeyboardInterrupt | SystemExit) -> SystemExit:
    """Return the end of a command that was stopped in order, with the code 130 for Ctrl-C or that of the signal.

    How to continue stays the last line.
    """
    gc.freeze()  # Python's last collection of garbage would take seconds with all libraries of training
    return SystemExit(130) if isinstance(stop, KeyboardInterrupt) else SystemExit(stop.code)
