"""Three stages side by side: the next case is read and the last one written while the network works."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar


class Run(Protocol):
    """One case on its way through the stages. A stage keeps its own errors; what it lets through ends all."""

    def read(self) -> None:
        """First stage, in a thread of its own."""

    def predict(self) -> None:
        """Second stage, in the caller's thread."""

    def finish(self) -> None:
        """Last stage, in a thread of its own."""


R = TypeVar("R", bound=Run)


def pipeline(runs: Iterable[R]) -> Generator[R, None, None]:
    """Sends runs through the stages, each at most one ahead of the next.

    When the caller's thread is interrupted, what is being written is finished first.

    Yields:
        Each run when it is finished, in their order.
    """
    with _worker("read", drop_queue=True) as reader, _worker("write", drop_queue=False) as writer:
        writing: tuple[R, Future[None]] | None = None
        for run in _read_ahead(reader, runs):
            run.predict()
            if writing is not None:
                yield _finished(*writing)
            writing = run, writer.submit(run.finish)
        if writing is not None:
            yield _finished(*writing)


def _read_ahead(reader: ThreadPoolExecutor, runs: Iterable[R]) -> Iterator[R]:
    reading: tuple[R, Future[None]] | None = None
    for run in runs:
        upcoming = run, reader.submit(run.read)
        if reading is not None:
            yield _finished(*reading)
        reading = upcoming
    if reading is not None:
        yield _finished(*reading)


def _finished(run: R, stage: Future[None]) -> R:
    stage.result()
    return run


@contextmanager
def _worker(name: str, *, drop_queue: bool) -> Iterator[ThreadPoolExecutor]:
    """One thread; what it is doing when the block ends is waited for, what it has not begun may be dropped."""
    pool = ThreadPoolExecutor(1, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=drop_queue)
