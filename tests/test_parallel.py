from __future__ import annotations

import os
from pathlib import Path

import pytest

from volseg.errors import DataError, GeometryError, OutputError, VolsegError
from volseg.io.checks import load_case
from volseg.io.datasets import Case
from volseg.io.labels import LabelMap
from volseg.parallel import for_each_case, run_tasks

CASES = [Case(f"c{number}", (Path(f"c{number}.nii"),), None) for number in range(4)]


def length(case: Case) -> int:
    return int(case.id[1:])


def process(case: Case) -> int:
    return os.getpid()


def odd_ones_fail(case: Case) -> int:
    if length(case) % 2:
        raise (DataError if case.id == "c1" else GeometryError)("no good", file=case.images[0])
    return length(case)


def full_disk(case: Case) -> int:
    raise OutputError("the disk is full")


def die(case: Case) -> int:
    if case.id != "c0":
        os._exit(1)
    return 0


def die_at_two(number: int) -> int:
    if number == 2:
        os._exit(1)
    return 10 * number


def test_results_keep_their_order() -> None:
    assert for_each_case(length, CASES) == [0, 1, 2, 3]
    assert for_each_case(length, []) == []


def test_little_work_starts_no_process() -> None:
    assert set(for_each_case(process, CASES, workers=2)) == {os.getpid()}


def test_much_work_is_shared_out() -> None:
    with pytest.raises(DataError, match="2 of 4 cases") as caught:  # errors come back from the processes whole
        for_each_case(odd_ones_fail, CASES, workers=1, pool_pays_s=1e-9)
    assert "- c1: no good\n    file: c1.nii" in str(caught.value)
    assert "- c3: no good" in str(caught.value)
    first, *others = for_each_case(process, CASES, workers=1, pool_pays_s=1e-9)
    assert first == os.getpid()
    assert os.getpid() not in others


def test_a_dead_worker_is_an_error_that_says_so() -> None:
    with pytest.raises(VolsegError, match="worker process died"):
        for_each_case(die, CASES, workers=1, pool_pays_s=0)


def test_only_the_task_that_kills_its_process_fails() -> None:
    outcomes = dict(run_tasks(die_at_two, range(4), workers=2, pool_pays_s=0))
    assert [outcomes[index]() for index in (0, 1, 3)] == [0, 10, 30]
    with pytest.raises(VolsegError, match="worker process died"):
        outcomes[2]()


def test_a_single_bad_case_keeps_its_file() -> None:
    with pytest.raises(DataError) as caught:
        for_each_case(odd_ones_fail, CASES[:2])
    assert caught.value.file == "c1.nii"


def test_what_is_no_case_s_fault_stops_at_once() -> None:
    told: list[int] = []
    with pytest.raises(OutputError):
        for_each_case(full_disk, CASES, progress=lambda done, _: told.append(done))
    assert told == []


def test_a_case_without_label_is_refused() -> None:
    with pytest.raises(DataError, match="no label"):
        load_case(CASES[0], ("CT",), LabelMap({"organ": (1,)}))
