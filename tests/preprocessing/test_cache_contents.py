from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.made.prepared_cases import made_plan, write_case
from volseg.cli.main import main
from volseg.io.array_folder import write_description
from volseg.planning.plan import Plan
from volseg.preprocessing.cache import CachedCase, cache_dataset, cache_in_use, plan_folder
from volseg.preprocessing.cache_contents import list_cache, remove_cached

OTHER = made_plan(spacing_mm=(2.0, 1.0, 1.5))


@pytest.fixture
def cached(tmp_path: Path) -> list[CachedCase]:
    """Two cases by one plan and one by another."""
    rng = np.random.default_rng(0)
    label = np.zeros((9, 8, 6), dtype=np.uint8)
    label[2:5, 2:5, 2:5] = 1
    cases = [write_case(tmp_path / "data", name, rng.normal(0, 100, (9, 8, 6)).astype("f4"), label) for name in "ab"]
    folder = tmp_path / "cache"
    return [*cache_dataset(cases, made_plan(), folder), *cache_dataset(cases[:1], OTHER, folder)]


def store_tokens(case: CachedCase) -> Path:
    variant = case.folder.parent / "tokens" / "0123456789ab" / case.folder.name / "plain"
    variant.mkdir(parents=True)
    (variant / "tokens.npy").write_bytes(bytes(1000))
    write_description(variant, {"case": case.id}, {})
    return variant


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_list_counts_cases_tokens_and_bytes(cached: list[CachedCase], tmp_path: Path) -> None:
    variant = store_tokens(cached[0])
    plans = {plan.folder: plan for plan in list_cache(tmp_path / "cache")}
    assert {folder: plan.cases for folder, plan in plans.items()} == {
        cached[0].folder.parent: 2,
        cached[2].folder.parent: 1,
    }
    assert plans[cached[0].folder.parent].case_bytes == size(cached[0].folder) + size(cached[1].folder)
    assert plans[cached[0].folder.parent].token_bytes == size(variant) > 1000
    assert plans[cached[2].folder.parent].token_bytes == 0


def test_one_plan_is_removed_with_its_tokens_and_the_other_stays(cached: list[CachedCase], tmp_path: Path) -> None:
    store_tokens(cached[0])
    (cached[1].folder / "meta.json").unlink()  # what another program left of it is removed as well
    first, second = sorted(list_cache(tmp_path / "cache"), key=lambda plan: -plan.token_bytes)
    assert remove_cached(first)
    assert list_cache(tmp_path / "cache") == [second]
    assert not first.folder.exists()
    assert cached[2].image.shape[0] == 1
    assert remove_cached(second)
    assert list((tmp_path / "cache").iterdir()) == []


def test_files_of_others_stay(cached: list[CachedCase], tmp_path: Path) -> None:
    folder = cached[0].folder.parent
    (folder / "notes.txt").write_text("mine")
    (folder / "scans-0123456789ab").mkdir()
    (folder / "scans-0123456789ab" / "scan.nii").write_text("mine")
    (folder / "link-0123456789ab").symlink_to(tmp_path / "data")
    for plan in list_cache(tmp_path / "cache"):
        assert remove_cached(plan)
    assert sorted(path.name for path in folder.iterdir()) == ["link-0123456789ab", "notes.txt", "scans-0123456789ab"]
    assert (folder / "scans-0123456789ab" / "scan.nii").read_text() == "mine"
    assert len(list((tmp_path / "data").iterdir())) > 0


def _use(folder: Path, plan: Plan, begun: multiprocessing.Event, over: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with cache_in_use(plan_folder(folder, plan)):
        begun.set()
        over.wait(60)


def test_what_another_process_uses_is_kept(
    cached: list[CachedCase], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = multiprocessing.get_context("spawn")
    begun, over = context.Event(), context.Event()
    process = context.Process(target=_use, args=(tmp_path / "cache", made_plan(), begun, over))
    process.start()
    assert begun.wait(60)
    try:
        assert main(["cache", str(tmp_path / "cache"), "--remove", "all"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert sorted(line.partition(": ")[2] for line in lines) == ["kept, a training uses it", "removed"]
        assert cached[0].image.shape[0] == 1
    finally:
        over.set()
        process.join(60)
    assert main(["cache", str(tmp_path / "cache"), "--remove", "all"]) == 0
    assert list_cache(tmp_path / "cache") == []


def test_use_is_recorded_and_old_ones_are_selected(
    cached: list[CachedCase], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    folder = str(tmp_path / "cache")
    for case in cached:
        os.utime(case.folder.parent, (0, 0))
    with cache_in_use(plan_folder(folder, OTHER)):
        pass
    assert main(["cache", folder, "--older-than", "1"]) == 0
    listed = capsys.readouterr().out
    assert f"{cached[0].folder.parent.name} " in listed
    assert cached[2].folder.parent.name not in listed
    assert main(["cache", folder, "--older-than", "1", "--remove", "all"]) == 0
    assert [plan.folder for plan in list_cache(folder)] == [cached[2].folder.parent]


def test_unknown_names_and_folders_are_refused(
    cached: list[CachedCase], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", str(tmp_path / "cache"), "--remove", "Task99"]) == 2
    assert "Task99" in capsys.readouterr().err
    assert len(list_cache(tmp_path / "cache")) == 2
    assert main(["cache", str(tmp_path / "nothing")]) == 2
    assert "there is no cache folder" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["-3", "nan"])
def test_days_that_would_select_everything_are_refused(
    days: str, cached: list[CachedCase], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", str(tmp_path / "cache"), f"--older-than={days}", "--remove", "all"]) == 2
    assert "--older-than is not a number of days" in capsys.readouterr().err
    assert len(list_cache(tmp_path / "cache")) == 2


def test_a_cache_is_used_where_it_cannot_be_written(cached: list[CachedCase], tmp_path: Path) -> None:
    folder = cached[0].folder.parent
    folder.chmod(0o555)
    try:
        with cache_in_use(plan_folder(tmp_path / "cache", made_plan())):
            assert replace(cached[0]).image.shape[0] == 1
    finally:
        folder.chmod(0o755)
