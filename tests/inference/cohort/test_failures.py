"""Folders with bad files, full disks and interruptions: bad cases are named, good ones done, nothing is lost."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made.folder_runs import GOOD, Image, add_bad_files, masks, statuses, writing_extras
from volseg.errors import DataError, OutputError
from volseg.inference.cohort import outputs as outputs_module
from volseg.inference.cohort import records as summary_module
from volseg.inference.cohort.history import append_line
from volseg.inference.cohort.run import predict_folder
from volseg.inference.predictor import Predictor
from volseg.io.volumes import read_grid


def test_bad_files_do_not_stop_the_good_ones(predictor: Predictor, scans: Path, scan: Image, tmp_path: Path) -> None:
    add_bad_files(scans, scan)
    steps: list[tuple[int, int]] = []
    summary = predict_folder(predictor, scans, tmp_path / "out", progress=lambda *step: steps.append(step))
    expected = dict.fromkeys(["cut off", "empty", "flat"], "failed") | dict.fromkeys(GOOD, "done")
    assert statuses(summary) == expected
    assert steps == [(n, 6) for n in range(1, 7)]
    assert masks(tmp_path / "out") == sorted(f"{name}.nii.gz" for name in GOOD)
    errors = {result.case: result.error or "" for result in summary.results}
    assert "truncated" in errors["cut off"]
    assert "cut off.nii.gz" in errors["cut off"]
    assert "2D" in errors["flat"]
    assert "same value" in errors["empty"]


def fail_for(size: int, error: BaseException, function: Callable[..., Any], grid_of: Callable[..., Any]) -> Any:
    """The function, failing for the scan of that many voxels along the first axis."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if grid_of(args, result).shape[0] == size:
            raise error
        return result

    return wrapped


@pytest.mark.parametrize(
    "error",
    [MemoryError("no more"), torch.OutOfMemoryError("no more"), SystemExit("no more"), KeyboardInterrupt("no more")],
    ids=lambda error: type(error).__name__,
)
def test_any_failure_is_kept_to_its_case(
    error: BaseException, predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only what volseg expects, and in worker threads not only what an Exception is: a library that exits, say."""
    read, segment, write = predictor.read, predictor.segment, outputs_module.write_mask
    monkeypatch.setattr(predictor, "read", fail_for(14, error, read, lambda args, volume: volume.grid))
    if isinstance(error, Exception):
        monkeypatch.setattr(predictor, "segment", fail_for(15, error, segment, lambda args, _: args[0].grid))
    monkeypatch.setattr(outputs_module, "write_mask", fail_for(16, error, write, lambda args, _: args[1].grid))
    summary = predict_folder(predictor, scans, tmp_path / "out")
    failed = [GOOD[0], GOOD[1], GOOD[2]] if isinstance(error, Exception) else [GOOD[0], GOOD[2]]
    assert {r.case: r.error for r in summary.results if r.error} == dict.fromkeys(
        failed, f"{type(error).__name__}: no more"
    )
    stages = {result.case: list(result.seconds) for result in summary.results}
    assert stages[GOOD[0]] == ["read"]
    assert stages[GOOD[1]][:2] == (["read", "segment"] if isinstance(error, Exception) else ["read", "prepare"])
    assert stages[GOOD[2]] == ["read", "prepare", "network", "restore", "postprocess", "write"]


def test_a_failure_is_logged_with_its_case(
    predictor: Predictor,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = fail_for(14, MemoryError("no more"), predictor.read, lambda args, volume: volume.grid)
    monkeypatch.setattr(predictor, "read", failing)
    predict_folder(predictor, scans, tmp_path / "out")
    assert f"{GOOD[0]} failed: MemoryError: no more" in caplog.text


def test_a_record_that_cannot_be_written_ends_the_run(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks without records would have to be made again; the message says where it happened."""

    def full(path: Path, line: bytes) -> None:
        if (tmp_path / "out" / f"{GOOD[1]}.nii.gz").exists():
            raise OSError(28, "No space left on device")
        append_line(path, line)

    monkeypatch.setattr(summary_module, "append_line", full)
    with pytest.raises(OutputError, match=rf"{GOOD[1]} cannot be recorded(\n.*)*No space left"):
        predict_folder(predictor, scans, tmp_path / "out")


def test_a_scan_is_never_overwritten(predictor: Predictor, scans: Path) -> None:
    before = (scans / "plain.nii.gz").read_bytes()
    for folder in (scans, scans / ".." / "scans"):
        with pytest.raises(OutputError, match="would lie among the scans"):
            predict_folder(predictor, scans, folder, overwrite=True)
    assert (scans / "plain.nii.gz").read_bytes() == before
    assert masks(scans) == sorted(f"{name}.nii.gz" for name in GOOD)


def test_nothing_to_predict(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for path in (tmp_path / "nothing", tmp_path / "nowhere"):
        with pytest.raises(DataError):
            predict_folder(predictor, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "read", lambda _: pytest.fail("work was begun"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        predict_folder(predictor, scans, tmp_path / "file" / "out")
    (tmp_path / "locked").mkdir()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        predict_folder(predictor, scans, tmp_path / "locked")


def test_an_interrupted_run_keeps_what_was_done(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the second case: the first mask is whole and recorded, and nothing else is left."""
    segment, calls = predictor.segment, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        assert threading.current_thread() is threading.main_thread()
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return segment(*args, **kwargs)

    monkeypatch.setattr(predictor, "segment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(predictor, scans, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3  # with the records and the summary
    monkeypatch.undo()
    assert sorted(statuses(predict_folder(predictor, scans, tmp_path / "out")).values()) == ["done", "done", "skipped"]


def test_nothing_is_written_beside_the_scans(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """A folder's time changes when a file is made or removed in it."""
    before = scans.stat().st_mtime_ns, sorted(scans.iterdir())
    predict_folder(predictor, scans, tmp_path / "out", split_classes=True)
    assert (scans.stat().st_mtime_ns, sorted(scans.iterdir())) == before


def test_a_run_that_ends_between_extras_and_mask_leaves_neither(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an older mask's record would vouch for another model's probabilities."""
    out = tmp_path / "out"
    writing_extras(predictor, monkeypatch)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OutputError("the file cannot be written", found="No space left on device")

    monkeypatch.setattr(outputs_module, "write_mask", full)
    summary = predict_folder(predictor, scans, out, probabilities=True, uncertainty=True)
    assert set(statuses(summary).values()) == {"failed"}
    assert sorted(path.name for path in out.iterdir()) == ["records.jsonl", "summary.json"]


@pytest.mark.parametrize("extra", ["probabilities", "uncertainty"])
def test_space_for_mapped_files_is_reserved(
    extra: str, predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, writing to a mapped page that has no space yet would kill the process (SIGBUS)."""
    sizes: list[int] = []

    def full(descriptor: int, offset: int, size: int) -> None:
        sizes.append(size)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    summary = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "out", **{extra: True})
    assert "No space left on device" in (summary.results[0].error or "")
    voxels = math.prod(read_grid(scans / "plain.nii.gz").shape)
    assert sizes == [4 * voxels if extra == "uncertainty" else 4 * 4 * voxels]  # 4 classes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["records.jsonl", "summary.json"]
