"""Work on many cases, in this process or in several, and report all invalid cases together."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar, cast

from volseg.errors import DataError, GeometryError, VolsegError
from volseg.io.cases import Case

POOL_PAYS_S = 10.0
"""Seconds of work below which starting processes costs more than it saves."""

Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called after every case with (cases done, cases in all)."""
StageProgress = Callable[[str, int, int | None], None]
"""Called with (stage, done, in all): the stages of a run in order, such as ``fingerprint``, ``preprocess``, ``train``,
``predict``, ``evaluate``. The total is ``None`` where it is not known, as for a training limited by time."""


def stage_progress(progress: StageProgress | None, stage: str) -> Progress | None:
    """Return the callback of one stage."""
    return None if progress is None else partial(progress, stage)


def run_tasks(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int, *, pool_pays_s: float = POOL_PAYS_S
) -> Iterator[tuple[int, Callable[[], Result]]]:
    """Work on tasks, in several processes where that pays, and yield the outcomes as they come.

    When a worker process dies, its task is tried again at the end, alone in a process, so that only the task that kills
    its process fails. The processes are killed when the caller stops, as on Ctrl-C, and end when this process dies.

    Args:
        work: Function of one task; with workers it must be picklable (a function of a module, or a partial of one).
        tasks: The tasks.
        workers: Processes; 0 works in this one.
        pool_pays_s: Processes are started as soon as more seconds of work are left, estimated from the finished tasks;
            0 starts them at once.

    Yields:
        The index of a task, and a call that returns its result or raises its error (VolsegError if its process died).
    """
    begin_s = time.perf_counter()
    for done, task in enumerate(tasks):
        left_s = (time.perf_counter() - begin_s) / max(done, 1) * (len(tasks) - done)
        if workers > 0 and (pool_pays_s == 0 or (done > 0 and left_s > pool_pays_s)):
            for index, outcome in _run_in_processes(work, tasks[done:], workers):
                yield done + index, outcome
            return
        yield done, partial(work, task)


def _run_in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[int, Callable[[], Result]]]:
    """Work on all tasks in several processes, then alone on those whose process died: they may need all the memory."""
    died = []
    for index, outcome in _share_out(work, list(enumerate(tasks)), workers):
        if outcome is None:
            died.append((index, tasks[index]))
        else:
            yield index, outcome
    for index, outcome in _share_out(work, died, workers=1):
        yield index, outcome or _raise_died


def _share_out(
    work: Callable[[Task], Result], tasks: list[tuple[int, Task]], workers: int
) -> Iterator[tuple[int, Callable[[], Result] | None]]:
    """Give every process one task after the other; the outcome is ``None`` if the process died.

    The processes are killed when the caller stops early.
    """
    waiting, pool = tasks[::-1], list[_Worker[Task, Result]]()
    try:
        while len(pool) < min(workers, len(tasks)):
            pool.append(_Worker(work))
            pool[-1].give(*waiting.pop())
        while busy := {worker.connection: worker for worker in pool if worker.index is not None}:
            for connection in wait(list(busy)):
                worker = busy[cast("Connection", connection)]
                index, outcome = worker.take()
                if outcome is None:
                    pool.remove(worker)
                    if waiting:
                        worker = _Worker(work)
                        pool.append(worker)
                if waiting:
                    worker.give(*waiting.pop())
                yield index, outcome
    finally:
        for worker in pool:
            worker.kill()


class _Worker(Generic[Task, Result]):
    """A process that works on tasks.

    Attributes:
        connection: Ready when there is an outcome, or when the process has died.
        index: Number of the task that it works on; ``None`` when idle.
    """

    def __init__(self, work: Callable[[Task], Result]) -> None:
        context = get_context("spawn")  # a fork would copy torch's threads and hang
        self.connection, theirs = context.Pipe()
        self.index: int | None = None
        self._process = context.Process(target=_work, args=(work, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the connection ends with the process

    def give(self, index: int, task: Task) -> None:
        """Send a task."""
        self.index = index
        with suppress(OSError):  # the process has died, as take() finds out
            self.connection.send(task)

    def take(self) -> tuple[int, Callable[[], Result] | None]:
        """Return the number of the task and a call that returns its result or raises its error; ``None`` if it died."""
        assert self.index is not None
        index, self.index = self.index, None
        try:
            return index, partial(_result, *self.connection.recv())
        except (EOFError, OSError):
            self.kill()
            return index, None

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _result(result: Any, error: Exception | None, text: str) -> Any:
    if error is not None:
        raise error from RuntimeError(f"in a worker process:\n{text}")
    return result


def _raise_died() -> Any:
    problem = "a worker process died, most likely because the memory was full"
    raise VolsegError(problem, hint="use fewer workers, or 0")


def _work(work: Callable[[Any], Any], connection: Connection) -> None:
    """Work on the tasks of a connection until it ends; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one ends the others
    end_with_parent()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        answer: tuple[Any, Exception | None, str]
        try:
            answer = work(task), None, ""
        except Exception as error:
            answer = None, error, traceback.format_exc()
        connection.send(answer)


def end_with_parent() -> None:
    """Let this process of `multiprocessing` end when its parent has ended, also by SIGKILL."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def for_each_case(
    work: Callable[[Case], Result],
    cases: Sequence[Case],
    *,
    workers: int = 0,
    progress: Progress | None = None,
    pool_pays_s: float = POOL_PAYS_S,
) -> list[Result]:
    """Work on all cases, then report the invalid ones together.

    Args:
        work: Function of one case; with workers it must be picklable.
        cases: Cases.
        workers: Processes; 0 works in this one.
        progress: Called after every case.
        pool_pays_s: As in :func:`run_tasks`.

    Returns:
        The results in the order of ``cases``.

    Raises:
        DataError: One or more cases cannot be used; each is named with its problem.
        VolsegError: An error that is not a case's fault; raised at once.
    """
    results: dict[int, Result] = {}
    failures: dict[int, DataError | GeometryError] = {}
    for index, outcome in run_tasks(work, cases, workers, pool_pays_s=pool_pays_s):
        try:
            results[index] = outcome()
        except (DataError, GeometryError) as error:
            failures[index] = error
        if progress is not None:
            progress(len(results) + len(failures), len(cases))
    if failures:
        raise _summary([(cases[index], failures[index]) for index in sorted(failures)], len(cases))
    return [results[index] for index in range(len(cases))]


def _summary(failures: Sequence[tuple[Case, DataError | GeometryError]], total: int) -> DataError:
    """One error that names every invalid case; a single one keeps its own file."""
    lines = (f"\n- {case.id}: " + str(error).replace("\n", "\n  ") for case, error in failures)
    return DataError(
        f"{len(failures)} of {total} cases cannot be used:" + "".join(lines),
        file=failures[0][1].file if len(failures) == 1 else None,
        hint="correct these cases or take them out of the data set",
    )
