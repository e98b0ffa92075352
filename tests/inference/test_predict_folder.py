"""Folders of scans: bad ones are named, good ones done; nothing is replaced or skipped by mistake."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from volseg.errors import DataError, OutputError
from volseg.inference import folder as folder_module
from volseg.inference.folder import predict_folder
from volseg.inference.predictor import Predictor
from volseg.inference.summary import Summary
from volseg.io.datasets import list_images
from volseg.planning.plan import Plan

MakePlan = Callable[..., Plan]
Image = nibabel.Nifti1Image
GOOD = ["a scan with spaces", "größe_日本", "plain"]


@pytest.fixture
def predictor(make_plan: MakePlan, nearest_model: nn.Module, tmp_path: Path) -> Predictor:
    (tmp_path / "model.safetensors").write_bytes(b"stands for the weights")
    return Predictor(nearest_model, make_plan(), device="cpu", model_file=tmp_path / "model.safetensors")


@pytest.fixture
def scans(tmp_path: Path, scan: Image) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate(GOOD):
        data = np.asanyarray(scan.dataobj)[: 14 + number]
        nibabel.save(Image(data, scan.affine), folder / f"{name}.nii.gz")
    return folder


def add_bad_files(folder: Path, scan: Image) -> None:
    whole = (folder / "plain.nii.gz").read_bytes()
    (folder / "cut off.nii.gz").write_bytes(whole[: len(whole) // 2])
    nibabel.save(Image(np.asanyarray(scan.dataobj)[:, :, 0], scan.affine), folder / "flat.nii.gz")
    nibabel.save(Image(np.full((8, 8, 8), 3, np.int16), scan.affine), folder / "empty.nii.gz")


def statuses(summary: Summary) -> dict[str, str]:
    return {result.case: result.status for result in summary.results}


def on_disk(summary: Summary) -> dict[str, Any]:
    document = json.loads(summary.path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def masks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".gz")


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


def test_masks_are_those_of_the_predictor(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    predict_folder(predictor, scans, tmp_path / "out")
    for name in GOOD:
        source = nibabel.load(scans / f"{name}.nii.gz")
        mask = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        assert np.array_equal(np.asanyarray(mask.dataobj), predictor.predict(scans / f"{name}.nii.gz").labels)
        assert mask.affine.tobytes() == source.affine.tobytes()
        assert mask.get_data_dtype() == np.uint16


def test_summary(predictor: Predictor, scans: Path, scan: Image, tmp_path: Path) -> None:
    add_bad_files(scans, scan)
    document = on_disk(predict_folder(predictor, scans, tmp_path / "out"))
    assert document["counts"] == {"done": 3, "skipped": 0, "failed": 3}
    assert document["options"] == {"tta": False}
    assert len(document["model_sha256"]) == 64
    done, failed = document["cases"]["größe_日本"], document["cases"]["flat"]
    assert set(done["seconds"]) == {"read", "predict", "restore", "write"}
    assert done["peak_rss_mb"] > 10
    assert done["inputs"] == [str(scans / "größe_日本.nii.gz")]
    assert set(failed["seconds"]) == {"read"}
    assert failed["output_sha256"] is None


def test_any_failure_is_kept_to_its_case(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only what volseg expects: the network, the way back and the disk fail in turn."""
    logits, restore, write = predictor.logits, predictor.restore, folder_module.write_mask

    def fail_if(first: int, function: Callable[..., Any], shape: Callable[[Any], Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if shape(args) == first:
                raise torch.OutOfMemoryError(f"no memory for {first}")
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(predictor, "logits", fail_if(14, logits, lambda args: args[0].grid.shape[0]))
    monkeypatch.setattr(predictor, "restore", fail_if(15, restore, lambda args: args[1].source.shape[0]))
    monkeypatch.setattr(folder_module, "write_mask", fail_if(16, write, lambda args: args[1].grid.shape[0]))
    summary = predict_folder(predictor, scans, tmp_path / "out")
    assert [result.error for result in summary.results] == [
        f"OutOfMemoryError: no memory for {size}" for size in _sizes(summary)
    ]
    stages = {result.case: list(result.seconds) for result in summary.results}
    assert stages[GOOD[0]] == ["read", "predict"]
    assert stages[GOOD[2]] == ["read", "predict", "restore", "write"]
    assert masks(tmp_path / "out") == []


def _sizes(summary: Summary) -> list[int]:
    return [14 + GOOD.index(result.case) for result in summary.results]


def test_finished_masks_are_not_made_again(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_folder(predictor, scans, tmp_path / "out")
    (tmp_path / "out" / "plain.nii.gz").unlink()
    before = (tmp_path / "out" / f"{GOOD[0]}.nii.gz").stat().st_mtime_ns
    summary = predict_folder(predictor, scans, tmp_path / "out")
    assert statuses(summary) == {GOOD[0]: "skipped", GOOD[1]: "skipped", "plain": "done"}
    assert (tmp_path / "out" / f"{GOOD[0]}.nii.gz").stat().st_mtime_ns == before
    assert set(statuses(predict_folder(predictor, scans, tmp_path / "out")).values()) == {"skipped"}


def change_model(predictor: Predictor, scans: Path, out: Path) -> None:
    assert predictor.model_file is not None
    predictor.model_file.write_bytes(b"other weights")


def change_input(predictor: Predictor, scans: Path, out: Path) -> None:
    for path in list(scans.iterdir()):
        image = nibabel.load(path)
        nibabel.save(Image(np.asanyarray(image.dataobj) + np.int16(1), image.affine), path)


def edit_masks(predictor: Predictor, scans: Path, out: Path) -> None:
    for path in out.glob("*.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(Image(np.asanyarray(image.dataobj)[::-1], image.affine), path)


def lose_records(predictor: Predictor, scans: Path, out: Path) -> None:
    (out / "summary.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize("change", [change_model, change_input, edit_masks, lose_records])
def test_other_masks_are_not_replaced_unasked(
    change: Callable[[Predictor, Path, Path], None], predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict_folder(predictor, scans, out)
    change(predictor, scans, out)
    before = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    summary = predict_folder(predictor, scans, out)
    assert set(statuses(summary).values()) == {"failed"}
    assert all("--overwrite" in (result.error or "") for result in summary.results)
    assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == before
    assert set(statuses(predict_folder(predictor, scans, out, overwrite=True)).values()) == {"done"}
    assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"skipped"}


def test_options_belong_to_the_record(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    predict_folder(predictor, scans, tmp_path / "out")
    assert set(statuses(predict_folder(predictor, scans, tmp_path / "out", tta=True)).values()) == {"failed"}
    assert set(statuses(predict_folder(predictor, scans, tmp_path / "out")).values()) == {"skipped"}


def test_a_network_in_memory_never_skips(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    predictor.model_file = None
    predict_folder(predictor, scans, tmp_path / "out")
    assert set(statuses(predict_folder(predictor, scans, tmp_path / "out")).values()) == {"failed"}


def test_shards_share_the_work(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = [predict_folder(predictor, scans, out, shard=(i, 4)) for i in range(4)]
    assert [list(statuses(part)) for part in parts] == [[name] for name in sorted(GOOD)] + [[]]
    assert [part.path.name for part in parts] == [f"summary_{i}_of_4.json" for i in range(4)]
    assert all(part.path.is_file() for part in parts)
    assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"skipped"}  # known from the shards


def test_one_file(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    summary = predict_folder(predictor, scans / "größe_日本.nii.gz", tmp_path / "new" / "out")
    assert statuses(summary) == {"größe_日本": "done"}
    assert masks(tmp_path / "new" / "out") == ["größe_日本.nii.gz"]
    second = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "new" / "out")
    assert list(on_disk(second)["earlier"]) == ["größe_日本"]


def test_a_scan_is_never_overwritten(predictor: Predictor, scans: Path) -> None:
    before = (scans / "plain.nii.gz").read_bytes()
    summary = predict_folder(predictor, scans, scans, overwrite=True)
    assert all("its own scan" in (result.error or "") for result in summary.results)
    assert (scans / "plain.nii.gz").read_bytes() == before


def test_cases_given_one_by_one(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    cases = [case for case in list_images(scans) if case.id == "plain"]
    assert statuses(predict_folder(predictor, cases, tmp_path / "out")) == {"plain": "done"}


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

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        predict_folder(predictor, scans, tmp_path / "locked")


def test_an_interrupted_run_keeps_what_was_done(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the second case: the first mask is whole and recorded, and nothing else is left."""
    logits, calls = predictor.logits, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        assert threading.current_thread() is threading.main_thread()
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return logits(*args, **kwargs)

    monkeypatch.setattr(predictor, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(predictor, scans, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 2
    monkeypatch.undo()
    assert sorted(statuses(predict_folder(predictor, scans, tmp_path / "out")).values()) == ["done", "done", "skipped"]
