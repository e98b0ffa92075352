"""Pipeline of three stages: while one case is predicted, the next is read and the previous is written."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar


class Run(Protocol):
    """One case in the pipeline. A stage handles the errors of its case; an error that it raises ends the pipeline."""

    def read(self) -> None:
        """Run the first stage, in the reading thread."""

    def predict(self) -> None:
        """Run the second stage, in the caller's thread."""

    def finish(self) -> None:
        """Run the last stage, in the writing thread."""


R = TypeVar("R", bound=Run)


def pipeline(runs: Iterable[R]) -> Generator[R, None, None]:
    """Pass runs through the stages; each stage is at most one run ahead of the next.

    If the caller's thread is interrupted, the run that is being written is finished first.

    Yields:
        Each finished run, in the order of ``runs``.
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
    """Yield each run once it is read; the next one is then being read."""
    reading: tuple[R, Future[None]] | None = None
    for run in runs:
        upcoming = run, reader.submit(run.read)
        if reading is not None:
            yield _finished(*reading)
        reading = upcoming
    if reading is not None:
        yield _finished(*reading)


def _finished(run: R, stage: Future[None]) -> R:
    """Wait for a stage, raise its error if there is one, and return its run."""
    stage.result()
    return run


@contextmanager
def _worker(name: str, *, drop_queue: bool) -> Iterator[ThreadPoolExecutor]:
    """Provide one thread. Leaving the block waits for the running task and, with ``drop_queue``, cancels the others."""
    pool = ThreadPoolExecutor(1, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=drop_queue)
