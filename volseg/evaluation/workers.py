"""Scoring cases in several processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from volseg.evaluation.case import CaseTask, score_case
from volseg.evaluation.results import CaseResult

logger = logging.getLogger(__name__)


def run_tasks(tasks: Sequence[CaseTask], workers: int) -> Iterator[list[CaseResult]]:
    """Results of each case as they come; in processes of their own if there is more than one worker."""
    if workers < 1 or len(tasks) < 2:
        yield from map(score_case, tasks)
        return
    open_tasks = {task.case: task for task in tasks}
    try:
        with _pool(min(workers, len(tasks))) as pool:
            for future in as_completed([pool.submit(score_case, task) for task in tasks]):
                done = future.result()
                del open_tasks[done[0].case]
                yield done
    except BrokenProcessPool:
        logger.error("a worker process died (out of memory?); its cases are tried again one by one")
        for task in list(open_tasks.values()):
            yield _run_alone(task)


def _run_alone(task: CaseTask) -> list[CaseResult]:
    """Score a case in a process of its own, so that only this case fails if the process dies."""
    try:
        with _pool(1) as pool:
            return pool.submit(score_case, task).result()
    except BrokenProcessPool:
        error = "the process died while this case was scored (out of memory?)"
        return [
            CaseResult(method, task.case, {}, error=error, prediction=source, reference=task.reference)
            for method, source in task.predictions.items()
        ]


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))  # a fork would copy torch's threads
