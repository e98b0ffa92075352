"""Kills, foreign files, damaged records and two runs at once: nothing is lost, mixed or refused forever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import pytest

from tests.made.folder_runs import GOOD, Image, change_model, masks, on_disk, statuses
from volseg.errors import DataError, OutputError
from volseg.inference.cohort import outputs as outputs_module
from volseg.inference.cohort.records import CaseRecord, Summary
from volseg.inference.cohort.run import predict_folder
from volseg.inference.cohort.shard import shard_of
from volseg.inference.predictor import Predictor
from volseg.io.cases import Case, list_images
from volseg.io.locks import folder_lock


class Killed(BaseException):
    """Stands for SIGKILL: what follows in the writing thread does not happen."""


def kill_after_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run after the mask of a case has its name and before its record is written."""
    write, add = outputs_module.write_mask, Summary.add

    def killed(self: Summary, record: CaseRecord) -> None:
        if record.case == name:
            raise Killed
        add(self, record)

    monkeypatch.setattr(Summary, "add", killed)
    monkeypatch.setattr(outputs_module, "write_mask", write)


def test_a_case_that_was_killed_between_mask_and_record_is_finished(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    kill_after_mask(GOOD[1], monkeypatch)
    with pytest.raises(Killed):
        predict_folder(predictor, scans, out, uncertainty=True)
    monkeypatch.undo()
    assert f"{GOOD[1]}.nii.gz" in masks(out)
    before = (out / f"{GOOD[1]}.nii.gz").read_bytes()
    summary = predict_folder(predictor, scans, out, uncertainty=True)
    assert statuses(summary) == {GOOD[0]: "skipped", GOOD[1]: "done", "plain": "done"}
    assert (out / f"{GOOD[1]}.nii.gz").read_bytes() == before
    assert set(statuses(predict_folder(predictor, scans, out, uncertainty=True)).values()) == {"skipped"}


def test_the_unfinished_case_of_another_model_is_replaced_only_when_asked(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after_mask("plain", monkeypatch)
    with pytest.raises(Killed):
        predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "out")
    monkeypatch.undo()
    change_model(predictor, scans, tmp_path / "out")
    assert statuses(predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "out")) == {"plain": "failed"}
    again = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "out", overwrite=True)
    assert statuses(again) == {"plain": "done"}


def test_a_mask_of_somebody_else_is_safe_after_a_failed_case(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case whose files could not be written has none, so a file that comes later is not volseg's."""

    def full(*_: Any, **__: Any) -> None:
        raise OutputError("the file cannot be written", found="No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(outputs_module, "write_mask", full)
    assert statuses(predict_folder(predictor, scans / "plain.nii.gz", out)) == {"plain": "failed"}
    monkeypatch.undo()
    (out / "plain.nii.gz").write_bytes(b"drawn by hand")
    for overwrite in (False, True):
        summary = predict_folder(predictor, scans / "plain.nii.gz", out, overwrite=overwrite)
        assert statuses(summary) == {"plain": "failed"}
    assert (out / "plain.nii.gz").read_bytes() == b"drawn by hand"


def test_an_incomplete_last_line_is_removed(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_folder(predictor, scans, out)
    records = out / "records.jsonl"
    whole = records.read_bytes()
    assert whole.count(b"\n") == 6  # a line before and after the files of each case
    records.write_bytes(whole + b'{"case": "pla')
    assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"skipped"}
    assert records.read_bytes() == whole
    records.write_bytes(whole[:-1])
    assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"skipped"}
    assert records.read_bytes() == whole
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".gz") == ["records.jsonl", "summary.json"]


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff\n",
        b"[1]\n",
        b"[" * 100_000 + b"\n",
        b'{"case": 3, "status": "done", "outputs": {}}\n',
        b'{"case": "plain", "status": "done", "outputs": {"plain.nii.gz": 7}}\n',
        b'{"case": "plain"}\n',
    ],
    ids=["bytes", "list", "deep", "case", "outputs", "incomplete"],
)
def test_a_damaged_record_file_is_kept(damage: bytes, predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_folder(predictor, scans, out)
    whole = (out / "records.jsonl").read_bytes()
    (out / "records.jsonl").write_bytes(damage + whole)
    assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"skipped"}
    assert (out / "records.jsonl.kept-1").read_bytes() == damage + whole
    assert (out / "records.jsonl").read_bytes() == whole


def test_a_summary_of_somebody_else_is_kept(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for number, text in enumerate(('{"mean": 1}', "not JSON", "[1, 2]"), start=1):
        (out / "summary.json").write_text(text)
        predict_folder(predictor, scans, out)
        assert (out / f"summary.json.kept-{number}").read_text() == text
        assert len(on_disk(predict_folder(predictor, scans, out))["cases"]) == 3


def test_the_summary_is_written_once(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records are appended: the work for a case does not grow with the number of cases before it."""
    sizes: list[int] = []
    add = Summary.add

    def record(self: Summary, result: CaseRecord) -> None:
        add(self, result)
        assert not (tmp_path / "out" / "summary.json").exists()
        sizes.append((tmp_path / "out" / "records.jsonl").stat().st_size)

    monkeypatch.setattr(Summary, "add", record)
    predict_folder(predictor, scans, tmp_path / "out")
    lines = (tmp_path / "out" / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert sizes == [sum(map(len, lines[: 2 * number])) for number in (1, 2, 3)]


def test_outputs_that_two_cases_would_write(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    (scans / "plain_uncertainty.nii.gz").write_bytes((scans / "plain.nii.gz").read_bytes())
    with pytest.raises(OutputError, match="plain and plain_uncertainty"):
        predict_folder(predictor, scans, tmp_path / "out", uncertainty=True)
    assert not (tmp_path / "out").exists()
    assert set(statuses(predict_folder(predictor, scans, tmp_path / "out")).values()) == {"done"}


def test_no_output_replaces_an_input(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """Neither that of another case, nor one that is a link, nor a scan beside which the mask would lie."""
    out, plain = tmp_path / "out", (scans / "plain.nii.gz").read_bytes()
    for folder in ("a", "b", "out"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "a" / "x.nii.gz").write_bytes(plain)
    (out / "y.nii.gz").write_bytes(plain)
    (tmp_path / "b" / "y.nii.gz").symlink_to(out / "y.nii.gz")
    (tmp_path / "list.txt").write_text("a/x.nii.gz\nb/y.nii.gz\n")
    for scans_of_run in (tmp_path / "list.txt", out, out / "y.nii.gz"):
        with pytest.raises(OutputError, match="would lie among the scans"):
            predict_folder(predictor, scans_of_run, out, overwrite=True)
    assert masks(out) == ["y.nii.gz"]
    assert (out / "y.nii.gz").read_bytes() == plain


def test_the_folder_of_masks_may_lie_in_that_of_the_scans(predictor: Predictor, scans: Path) -> None:
    for _ in range(2):
        assert len(predict_folder(predictor, scans, scans / "masks").results) == 3


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", ".hidden", "x\0", "ä" * 101])
def test_case_ids_that_are_no_file_names(name: str, predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a file name"):
        predict_folder(predictor, [Case(name, (scans / "plain.nii.gz",), None)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_runs_in_one_folder(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """The second is refused, unless both are shards of one prediction."""
    out = tmp_path / "out"
    out.mkdir()
    with folder_lock(out, "volseg predict"), pytest.raises(OutputError, match="another process"):
        predict_folder(predictor, scans, out)
    assert list(out.iterdir()) == []
    reached = []

    def second(done: int, total: int) -> None:
        if not reached:
            reached.append(statuses(predict_folder(predictor, scans, out, shard=(1, 2))))
            for refused in ({"shard": (0, 2)}, {"shard": (1, 3)}, {}, {"shard": (1, 2), "overwrite": True}):
                if "overwrite" in refused:
                    change_model(predictor, scans, out)
                with pytest.raises(OutputError, match="another process"):
                    predict_folder(predictor, scans, out, **refused)

    predict_folder(predictor, scans, out, shard=(0, 2), progress=second)
    own = [case.id for case in shard_of(list_images(scans), (1, 2))]
    assert 0 < len(own) < len(GOOD)
    assert reached == [dict.fromkeys(own, "done")]
    assert not list(out.glob(".*"))


def test_what_a_killed_run_left_is_removed(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code = """
import os, signal, sys
from pathlib import Path
from volseg.io.atomic import atomic_file, scratch_folder
from volseg.io.locks import folder_lock
out = Path(sys.argv[1])
with folder_lock(out, "volseg predict"), scratch_folder(out / "staging") as staging:
    (staging / "b_probabilities.nii").write_bytes(b"half")
    with atomic_file(out / "gone.nii.gz") as file:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(out.glob(".*"))) == 3
    predict_folder(predictor, scans, out)
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".gz") == ["records.jsonl", "summary.json"]


def test_a_name_that_is_not_utf_8(predictor: Predictor, scans: Path, scan: Image, tmp_path: Path) -> None:
    """Records and masks are written under it, and a rerun knows them."""
    folder = tmp_path / "bytes"
    folder.mkdir()
    nibabel.save(scan, tmp_path / "x.nii.gz")
    name = b"scan-\xe9".decode(errors="surrogateescape")
    try:
        (tmp_path / "x.nii.gz").rename(folder / f"{name}.nii.gz")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    assert statuses(predict_folder(predictor, folder, tmp_path / "out")) == {name: "done"}
    again = predict_folder(predictor, folder, tmp_path / "out")
    assert statuses(again) == {name: "skipped"}
    assert list(json.loads((tmp_path / "out" / "summary.json").read_bytes())["cases"]) == [name]


@pytest.mark.parametrize("name", ["records.jsonl", "summary.json"])
def test_a_pipe_in_place_of_a_record_file_is_refused(
    name: str, predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    """Opening it would wait for a reader for ever."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(OutputError, match="not a regular file"):
        predict_folder(predictor, scans, tmp_path)
