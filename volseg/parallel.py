"""Work on many cases, in this process or in several, and report all invalid cases together."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from volseg.errors import DataError, GeometryError, VolsegError
from volseg.io.cases import Case

POOL_PAYS_S = 10.0
"""Seconds of work below which starting processes costs more than it saves."""

Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called after every case with (cases done, cases in all)."""


def for_each_case(
    work: Callable[[Case], Result], cases: Sequence[Case], *, workers: int = 0, progress: Progress | None = None
) -> list[Result]:
    """Does ``work`` for all cases, and only then complains about the bad ones, all at once.

    Args:
        work: Function of one case; for ``workers > 0`` it must be picklable (a module's function or a partial).
        cases: Cases.
        workers: Processes, started only if more than 10 seconds of work are left; 0 works in this one.
        progress: Called after every case.

    Returns:
        The results in the order of ``cases``.

    Raises:
        DataError: One or more cases cannot be used; each is named with its problem.
        VolsegError: Anything that is not a case's fault, at once.
    """
    results: list[Result] = []
    failures: list[tuple[Case, DataError | GeometryError]] = []
    for case, outcome in zip(cases, _outcomes(work, cases, workers), strict=True):
        try:
            results.append(outcome())
        except (DataError, GeometryError) as error:
            failures.append((case, error))
        if progress is not None:
            progress(len(results) + len(failures), len(cases))
    if failures:
        raise _summary(failures, len(cases))
    return results


def _outcomes(work: Callable[[Case], Result], cases: Sequence[Case], workers: int) -> Iterator[Callable[[], Result]]:
    """Calls that give each case's result: here, as long as processes would hardly start before all is done."""
    begun_s = time.perf_counter()
    for done, case in enumerate(cases):
        left_s = (time.perf_counter() - begun_s) / max(done, 1) * (len(cases) - done)
        if workers > 0 and done > 0 and left_s > POOL_PAYS_S:
            yield from _parallel(work, cases[done:], workers)
            return
        yield partial(work, case)


def _parallel(work: Callable[[Case], Result], cases: Sequence[Case], workers: int) -> Iterator[Callable[[], Result]]:
    # spawn: forking a process that already runs torch threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(cases)), mp_context=context) as pool:
        futures = [pool.submit(work, case) for case in cases]
        try:
            for future in futures:
                yield partial(_result, future)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise VolsegError(
            "a worker process died, most likely for want of memory", hint="use fewer workers, or 0"
        ) from error


def _summary(failures: Sequence[tuple[Case, DataError | GeometryError]], total: int) -> DataError:
    """One error that names every bad case; a single one keeps its own file."""
    lines = (f"\n- {case.id}: " + str(error).replace("\n", "\n  ") for case, error in failures)
    return DataError(
        f"{len(failures)} of {total} cases cannot be used:" + "".join(lines),
        file=failures[0][1].file if len(failures) == 1 else None,
        hint="correct these cases or take them out of the data set",
    )
