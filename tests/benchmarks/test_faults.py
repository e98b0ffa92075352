"""The trials of faults.py and fuzz.py notice other results, files left over, exceptions, memory and flipped bits."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volseg.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def trials(module: str) -> Any:
    """Import at run time: the folder of the benchmarks is on the path inside of tests only."""
    return import_module(f"trials.{module}")


def test_a_command_is_killed_at_its_moment_and_finishes_later(tmp_path: Path) -> None:
    processes = trials("processes")
    command = ["phantom", tmp_path / "data", "--train", "2", "--test", "0"]
    killed = processes.Command(command, tmp_path).kill_at(lambda: (tmp_path / "data" / "imagesTr").is_dir())
    assert (killed.code, killed.children, killed.refused) == (None, 0, False)
    assert not (tmp_path / "data" / "labelsTr" / "phantom_001.nii.gz").exists()
    finished = processes.Command(command, tmp_path).wait()
    assert finished.code == 0
    assert "2 training" in finished.text
    assert len(processes.files_below(tmp_path / "data")) == 5
    assert processes.Command(["plan", tmp_path / "nothing"], tmp_path).wait().refused


def test_a_tally_counts_what_is_different_left_over_and_missing(tmp_path: Path) -> None:
    for path in ("reference/masks/a", "run/masks/.a.tmp"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    tally = trials("kills").Tally(np.random.default_rng(0))
    tally.compare(tmp_path / "run", {"a": 1, "b": 2}, {"a": 1, "b": 3}, tmp_path / "reference", ("masks",))
    assert tally.result()["identical runs"] == 0
    assert [text.partition(": ")[2] for text in tally.result()["problems"]] == [
        "different: b (1)",
        "left over: .a.tmp (1)",
        "missing: a",
    ]


def fail() -> None:
    raise ZeroDivisionError("division by zero")


def refuse(file: str | None = None) -> None:
    raise DataError("damaged", file=file)


def take_memory() -> None:
    np.ones(300 << 20, np.uint8)


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda: None, "read"),
        (lambda: refuse("folder/mutant.nii"), "refused"),
        (refuse, "error that names no file: damaged"),
        (fail, "ZeroDivisionError: division by zero"),
    ],
)
def test_outcomes_of_damaged_files(read: Any, outcome: str) -> None:
    mutant = trials("mutations").Mutant("scan", "cut", Path("folder/mutant.nii"), read)
    assert trials("mutants").outcome_of(7, mutant)["outcome"] == outcome


def test_a_damaged_file_that_takes_much_memory_counts_as_failed() -> None:
    mutant = trials("mutations").Mutant("scan", "cut", Path("mutant.nii"), take_memory)
    found = trials("mutants").outcome_of(7, mutant)
    assert found["outcome"].endswith(" MB, then read")
    assert found["bytes"] > 256 << 20


def test_mutants_are_determined_by_their_seed(tmp_path: Path) -> None:
    scans = [trials("damaged_scans").DamagedScans(tmp_path) for _ in range(2)]
    seen = []
    for seed in range(20):
        first, second = (one.make(np.random.default_rng(seed)) for one in scans)
        assert (first.kind, first.note, first.path) == (second.kind, second.note, second.path)
        seen.append(first.note)
    assert len(set(seen)) > 15
    document = {"a": [1, {"b": None}], "c": "text"}
    texts = {trials("mutations").damage_document(document, np.random.default_rng(seed)) for seed in range(50)}
    assert len(texts) > 40
    assert document == {"a": [1, {"b": None}], "c": "text"}


def test_300_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """Files of every kind, as in fuzz.py, where each is read in a process of its own with a limit of memory."""
    files, outcome_of = trials("damaged_files").DamagedFiles(tmp_path), trials("mutants").outcome_of
    outcomes = [outcome_of(seed, files.make(seed)) for seed in range(1_000, 1_300)]
    assert [one for one in outcomes if one["outcome"] not in ("read", "refused")] == []
    assert len({one["kind"] for one in outcomes}) > 20
    assert min(sum(one["outcome"] == outcome for one in outcomes) for outcome in ("read", "refused")) > 60


def test_flipped_bits_are_noticed_or_not_and_the_file_is_restored(tmp_path: Path) -> None:
    flip_and_read = trials("bitflips").flip_and_read
    file = tmp_path / "image.npy"
    np.save(file, np.arange(100))
    whole = file.read_bytes()

    def checked() -> bytes:
        if file.read_bytes() != whole:
            raise DataError("damaged", file=file)
        return whole

    def mended() -> bytes:
        file.write_bytes(whole)
        return whole

    rng = np.random.default_rng(0)
    assert flip_and_read(tmp_path, rng, file.read_bytes)[0] == "unnoticed"
    assert flip_and_read(tmp_path, rng, checked)[0] == "refused"
    assert flip_and_read(tmp_path, rng, mended)[0] == "mended"
    assert flip_and_read(tmp_path, rng, lambda: whole)[0] == "unnoticed"  # not even looked at
    assert file.read_bytes() == whole


def test_the_pages_follow_from_their_records() -> None:
    for topic, write in (("faults", "write_tables"), ("fuzz", "write_mutants")):
        page = (RESULTS / topic / "README.md").read_text(encoding="utf-8")
        assert getattr(trials("tables"), write)(RESULTS / topic) == page


def test_every_promise_names_trials_and_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 8
    parts = {part for *_, trial, _ in rows for part in re.findall(r"`([^`]+)`", trial)}
    assert parts == {*import_module("faults").COUNTS, "fuzz"}
    files = {file for *_, tests in rows for file in re.findall(r"`([^`]+)`", tests)}
    assert [file for file in files if not (ROOT / file).is_file()] == []
