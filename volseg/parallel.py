"""Work on many cases, in this process or in several, and report all invalid cases together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

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

    When a worker process dies, every unfinished task is tried again in a process of its own, so that only the task that
    kills its process fails.

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
    unfinished = dict(enumerate(tasks))
    with _pool(min(workers, len(tasks))) as pool:
        futures: dict[Future[Result], int] = {pool.submit(work, task): index for index, task in unfinished.items()}
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    break
                del unfinished[futures[future]]
                yield futures[future], future.result
        finally:  # also when the caller stops early
            pool.shutdown(wait=False, cancel_futures=True)
    for index, task in unfinished.items():
        yield index, partial(_run_alone, work, task)


def _run_alone(work: Callable[[Task], Result], task: Task) -> Result:
    """Work on a task in a process of its own."""
    try:
        with _pool(1) as pool:
            return pool.submit(work, task).result()
    except BrokenProcessPool as error:
        raise VolsegError(
            "a worker process died, most likely because the memory was full", hint="use fewer workers, or 0"
        ) from error


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))  # a fork would copy torch's threads and hang


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
