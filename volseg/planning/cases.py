"""What every pass over a data set shares: load a labelled case and check it; run all cases and name all bad ones."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, GeometryError, VolsegError
from volseg.geometry.volume import Mask, Volume
from volseg.io.datasets import Case
from volseg.io.volumes import check_image, read_channels, read_mask

POOL_PAYS_S = 10.0
"""Seconds of work below which starting processes costs more than it saves."""

Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called after every case with (cases done, cases in all)."""


def load_case(case: Case, channels: int, label_values: Collection[int]) -> tuple[Volume, Mask]:
    """Reads a labelled case and checks everything that would spoil training silently.

    Args:
        case: Its files.
        channels: Channels the data set declares.
        label_values: Every value a label file may hold (background and ignore included).

    Returns:
        Image (C, D, H, W) in the stored type and mask (D, H, W), both in file order, on grids that agree.

    Raises:
        DataError: No label, unreadable file, NaN or constant image, wrong number of channels, unknown label value.
        GeometryError: Image and label lie on different grids.
    """
    if case.label is None:
        raise DataError("the case has no label", file=case.images[0], mend="add its label file or remove the image")
    volume = read_channels(case.images)
    if volume.data.shape[0] != channels:
        raise DataError(
            "wrong number of channels", file=case.images[0], found=volume.data.shape[0], expected=f"{channels}"
        )
    check_image(volume, case.images[0])
    mask = read_mask(case.label)
    if not volume.grid.same_as(mask.grid):
        raise GeometryError(
            "image and label lie on different grids",
            file=case.label,
            found=mask.grid.describe(),
            expected=f"{volume.grid.describe()} ({case.images[0].name})",
            mend="export both again on one grid",
        )
    unknown = sorted(set(np.unique(mask.labels).tolist()) - set(label_values))
    if unknown:
        raise DataError(
            "the label holds a value that the data set does not declare",
            file=case.label,
            found=", ".join(map(str, unknown)),
            expected=", ".join(map(str, sorted(label_values))),
            mend="correct the label file, or name the value in dataset.json",
        )
    return volume, mask


def nonzero_box(data: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First and past-the-last voxel, along each axis of (C, D, H, W), of what is not 0 in some channel."""
    shape = data.shape[1:]
    occupied = [np.zeros(size, dtype=bool) for size in shape]
    for index in range(shape[0]):  # slice by slice: a mask of a whole-body scan would double its memory
        plane = (data[:, index] != 0).any(axis=0)
        occupied[0][index] = plane.any()
        occupied[1] |= plane.any(axis=1)
        occupied[2] |= plane.any(axis=0)
    if not occupied[0].any():
        return (0, 0, 0), shape
    found = [np.flatnonzero(axis) for axis in occupied]
    return tuple(int(axis[0]) for axis in found), tuple(int(axis[-1]) + 1 for axis in found)


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
            "a worker process died, most likely for want of memory", mend="use fewer workers, or 0"
        ) from error


def _summary(failures: Sequence[tuple[Case, DataError | GeometryError]], total: int) -> DataError:
    """One error that names every bad case; a single one keeps its own file."""
    lines = (f"\n- {case.id}: " + str(error).replace("\n", "\n  ") for case, error in failures)
    return DataError(
        f"{len(failures)} of {total} cases cannot be used:" + "".join(lines),
        file=failures[0][1].file if len(failures) == 1 else None,
        mend="correct these cases or take them out of the data set",
    )
