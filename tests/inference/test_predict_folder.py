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
from volseg.evaluation.labelmap import make_label_map
from volseg.evaluation.masks import read_case_mask
from volseg.evaluation.sources import find_masks
from volseg.geometry.volume import Volume
from volseg.inference import outputs as outputs_module
from volseg.inference import summary as summary_module
from volseg.inference.folder import predict_folder
from volseg.inference.options import PredictOptions
from volseg.inference.outputs import Outputs
from volseg.inference.postprocess import Postprocessing
from volseg.inference.predictor import Predictor, Segmentation
from volseg.inference.summary import Summary
from volseg.io.atomic import atomic_file
from volseg.io.cases import Case
from volseg.io.datasets import list_images
from volseg.io.model_file import file_sha256
from volseg.io.volumes import read_mask, read_volume
from volseg.planning.plan import Plan

MakePlan = Callable[..., Plan]
Image = nibabel.Nifti1Image
GOOD = ["a scan with spaces", "größe_日本", "plain"]


@pytest.fixture
def predictor(make_plan: MakePlan, nearest_model: nn.Module, tmp_path: Path) -> Predictor:
    (tmp_path / "model.safetensors").write_bytes(b"stands for the weights")
    predictor = Predictor.from_model(nearest_model, make_plan(), device="cpu")
    predictor.model_files = (tmp_path / "model.safetensors",)
    return predictor


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
    assert document["options"] == {"tta": False, "skip_air": True}
    assert [len(text) for text in document["model_sha256"]] == [64]
    assert document["model_files"] == [str(tmp_path / "model.safetensors")]
    done, failed = document["cases"]["größe_日本"], document["cases"]["flat"]
    assert set(done["seconds"]) == {"read", "prepare", "network", "restore", "postprocess", "write"}
    assert done["counts"]["windows"] > 0
    assert done["peak_rss_mb"] > 10
    assert done["inputs"] == [str(scans / "größe_日本.nii.gz")]
    assert done["outputs"] == {"größe_日本.nii.gz": file_sha256(tmp_path / "out" / "größe_日本.nii.gz")}
    assert set(failed["seconds"]) == {"read"}
    assert failed["outputs"] == {}


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

    def full(path: Path) -> Any:
        if path.name == "summary.json" and (tmp_path / "out" / f"{GOOD[1]}.nii.gz").exists():
            raise OutputError("the file cannot be written", file=path, found="No space left on device")
        return atomic_file(path)

    monkeypatch.setattr(summary_module, "atomic_file", full)
    with pytest.raises(OutputError, match=f"{GOOD[1]} cannot be recorded"):
        predict_folder(predictor, scans, tmp_path / "out")


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
    predictor.model_files[0].write_bytes(b"other weights")


def add_model(predictor: Predictor, scans: Path, out: Path) -> None:
    second = predictor.model_files[0].with_name("second.safetensors")
    second.write_bytes(b"more weights")
    predictor.model_files = (*predictor.model_files, second)


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


@pytest.mark.parametrize("change", [change_model, add_model, change_input, edit_masks, lose_records])
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
    """Those that change a mask, and not the memory it may take."""

    def again(**changes: Any) -> set[str]:
        options = PredictOptions(**changes)
        return set(statuses(predict_folder(predictor, scans, tmp_path / "out", options=options)).values())

    assert again() == {"done"}
    assert again(tta=True) == again(skip_air=False) == {"failed"}
    assert again(max_memory_bytes=10**9) == {"skipped"}


def test_the_order_of_an_ensemble_does_not_matter(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    add_model(predictor, scans, tmp_path / "out")
    predict_folder(predictor, scans, tmp_path / "out")
    predictor.model_files = predictor.model_files[::-1]
    summary = predict_folder(predictor, scans, tmp_path / "out")
    assert set(statuses(summary).values()) == {"skipped"}
    assert len(set(on_disk(summary)["model_sha256"])) == 2


def test_a_network_in_memory_never_skips(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    predictor.model_files = ()
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
    assert len(list((tmp_path / "out").iterdir())) == 2
    monkeypatch.undo()
    assert sorted(statuses(predict_folder(predictor, scans, tmp_path / "out")).values()) == ["done", "done", "skipped"]


def writing_extras(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """The predictor, writing something where probabilities and uncertainty go, as a network's would be."""
    segment = predictor.segment
    calls = []

    def segment_and_write(
        volume: Volume,
        options: PredictOptions,
        *,
        probabilities: Path | None = None,
        uncertainty: Path | None = None,
    ) -> Segmentation:
        calls.append((probabilities is not None, uncertainty is not None))
        for path in (probabilities, uncertainty):
            if path is not None:
                path.write_bytes(b"values")
        return segment(volume, options)

    monkeypatch.setattr(predictor, "segment", segment_and_write)
    return calls


def test_extra_outputs(predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wanted now and was not then is made, without --overwrite; what is there is not made again."""
    out, calls = tmp_path / "out", writing_extras(predictor, monkeypatch)
    assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"done"}
    summary = predict_folder(predictor, scans, out, probabilities=True, uncertainty=True)
    assert set(statuses(summary).values()) == {"done"}
    outputs = on_disk(summary)["cases"]["plain"]["outputs"]
    assert outputs.pop("plain.nii.gz") == file_sha256(out / "plain.nii.gz")
    assert outputs == {"plain_probabilities.npy": None, "plain_uncertainty.nii.gz": None}
    assert calls == [(False, False)] * 3 + [(True, True)] * 3
    for wanted in ({"probabilities": True, "uncertainty": True}, {"uncertainty": True}, {}):
        assert set(statuses(predict_folder(predictor, scans, out, **wanted)).values()) == {"skipped"}
    (out / "plain_probabilities.npy").unlink()
    again = predict_folder(predictor, scans, out, probabilities=True)
    assert statuses(again) == {GOOD[0]: "skipped", GOOD[1]: "skipped", "plain": "done"}
    (out / "plain.nii.gz").unlink()
    change_model(predictor, scans, out)
    refused = predict_folder(predictor, scans, out, probabilities=True)
    assert set(statuses(refused).values()) == {"failed"}  # plain too: the probabilities are another model's


def test_one_file_a_class(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """As TotalSegmentator has it, and as evaluation reads it."""
    out = tmp_path / "out"
    predict_folder(predictor, scans, tmp_path / "maps")
    summary = predict_folder(predictor, scans, out, split_classes=True)
    found = find_masks(out)
    assert sorted(found.cases) == sorted(GOOD)
    assert found.unknown == ()
    for name in GOOD:
        whole = read_mask(tmp_path / "maps" / f"{name}.nii.gz")
        for label, value in {"left": 205, "right": 500, "top": 600}.items():
            image = nibabel.load(out / name / f"{label}.nii.gz")
            assert image.get_data_dtype() == np.uint8
            assert image.affine.tobytes() == nibabel.load(scans / f"{name}.nii.gz").affine.tobytes()
            assert np.array_equal(np.asanyarray(image.dataobj), whole.labels == value)
        merged = read_case_mask(found.cases[name], make_label_map(predictor.plan.labels))
        assert np.array_equal(merged.layers[0].labels, whole.labels)
    assert on_disk(summary)["cases"]["plain"]["outputs"]["plain"] is not None
    assert set(statuses(predict_folder(predictor, scans, out, split_classes=True)).values()) == {"skipped"}


@pytest.mark.parametrize("change", ["remove", "edit", "add"])
def test_changed_class_files_are_not_replaced_unasked(
    change: str, predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "plain"
    predict_folder(predictor, scans, tmp_path / "out", split_classes=True)
    if change == "remove":
        (folder / "left.nii.gz").unlink()
    else:
        (folder / ("left.nii.gz" if change == "edit" else "more.nii.gz")).write_bytes(b"mine")
    again = predict_folder(predictor, scans, tmp_path / "out", split_classes=True)
    assert statuses(again) == {GOOD[0]: "skipped", GOOD[1]: "skipped", "plain": "failed"}
    replaced = predict_folder(predictor, scans, tmp_path / "out", split_classes=True, overwrite=True)
    assert set(statuses(replaced).values()) == {"done"}
    assert masks(folder) == ["left.nii.gz", "right.nii.gz", "top.nii.gz"]


def test_both_forms_of_a_mask_are_remembered(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    for split in (False, True):
        assert set(statuses(predict_folder(predictor, scans, tmp_path, split_classes=split)).values()) == {"done"}
    for split in (False, True):
        assert set(statuses(predict_folder(predictor, scans, tmp_path, split_classes=split)).values()) == {"skipped"}


def test_folders_that_are_not_ours_are_never_replaced(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """Neither a folder with other things in it, nor the one in which the scan lies."""
    (tmp_path / "out" / "plain").mkdir(parents=True)
    (tmp_path / "out" / "plain" / "notes.txt").write_text("mine")
    summary = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "out", split_classes=True, overwrite=True)
    assert "notes.txt" in (summary.results[0].error or "")
    scan = tmp_path / "plain" / "plain.nii.gz"
    scan.parent.mkdir()
    scan.write_bytes((scans / "plain.nii.gz").read_bytes())
    summary = predict_folder(predictor, scan, tmp_path, split_classes=True, overwrite=True)
    assert "its own scan" in (summary.results[0].error or "")
    assert scan.is_file()


def test_classes_that_cannot_be_files(
    make_plan: MakePlan, nearest_model: nn.Module, scans: Path, tmp_path: Path
) -> None:
    plan = make_plan(labels={"background": 0, "left/right": 1, ".hidden": 2, "fine": 3})
    predictor = Predictor.from_model(nearest_model, plan, device="cpu")
    with pytest.raises(OutputError, match=r"left/right, \.hidden"):
        predict_folder(predictor, scans, tmp_path / "out", split_classes=True)
    assert not (tmp_path / "out").exists()


def test_class_files_come_whole_or_not_at_all(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_folder(predictor, scans, tmp_path, split_classes=True)
    before = (tmp_path / "plain" / "left.nii.gz").read_bytes()
    write = outputs_module.write_mask

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "right.nii.gz":
            raise OSError(28, "No space left on device")
        write(path, *args, **kwargs)

    monkeypatch.setattr(outputs_module, "write_mask", full)
    for target in (tmp_path, tmp_path / "new"):
        summary = predict_folder(predictor, scans, target, split_classes=True, overwrite=True)
        assert all("No space left" in (result.error or "") for result in summary.results)
    assert (tmp_path / "plain" / "left.nii.gz").read_bytes() == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["summary.json"]
    assert not list(tmp_path.glob(".*"))


def test_what_postprocessing_removed_is_in_the_summary(
    predictor: Predictor, nearest_model: nn.Module, scans: Path, tmp_path: Path
) -> None:
    postprocessing = Postprocessing(largest_component=("left", "right", "top"))
    cleaned = Predictor.from_model(nearest_model, predictor.plan, "cpu", postprocessing)
    cleaned.model_files = predictor.model_files
    source = scans / "plain.nii.gz"
    image = nibabel.load(source)
    data = np.asanyarray(image.dataobj).copy()
    data[2:5, 16:20, 1:3] = 100
    nibabel.save(Image(data, image.affine), source)
    summary = predict_folder(cleaned, source, tmp_path / "out")
    removed = on_disk(summary)["cases"]["plain"]["removed"]
    before, after = predictor.predict(source), read_mask(tmp_path / "out" / "plain.nii.gz")
    assert sum(entry["voxels"] for entry in removed) == np.count_nonzero(before.labels != after.labels) > 10
    again = predict_folder(cleaned, source, tmp_path / "out")
    assert statuses(again) == {"plain": "skipped"}
    assert on_disk(again)["cases"]["plain"]["removed"] == removed


def test_a_list_of_scans(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.txt").write_text("scans/plain.nii.gz\nscans/gone.nii.gz  # moved\n", encoding="utf-8")
    summary = predict_folder(predictor, tmp_path / "cases.txt", tmp_path / "out")
    assert statuses(summary) == {"gone": "failed", "plain": "done"}
    assert "gone.nii.gz" in (summary.results[0].error or "")


def test_a_case_that_is_a_folder(
    predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DICOM series: named after its folder, known by its files, its mask without a NIfTI header to copy."""
    series = tmp_path / "series"
    series.mkdir()
    (series / "IM2").write_bytes((scans / "plain.nii.gz").read_bytes())
    monkeypatch.setattr(predictor, "read", lambda paths: read_volume(scans / "plain.nii.gz"))
    cases = [Case("series", (series,), None)]
    assert statuses(predict_folder(predictor, cases, tmp_path / "out")) == {"series": "done"}
    expected, found = read_mask(tmp_path / "out" / "series.nii.gz"), read_volume(scans / "plain.nii.gz")
    assert expected.grid.same_as(found.grid)
    assert statuses(predict_folder(predictor, cases, tmp_path / "out")) == {"series": "skipped"}
    (series / "IM1").write_bytes(b"one more")
    assert statuses(predict_folder(predictor, cases, tmp_path / "out")) == {"series": "failed"}


def test_nothing_is_written_beside_the_scans(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """A folder's time changes when a file is made or removed in it."""
    before = scans.stat().st_mtime_ns, sorted(scans.iterdir())
    predict_folder(predictor, scans, tmp_path / "out", split_classes=True)
    assert (scans.stat().st_mtime_ns, sorted(scans.iterdir())) == before


def test_names_of_outputs(tmp_path: Path) -> None:
    outputs = Outputs(folder=tmp_path, split_classes=True, probabilities=True, uncertainty=True)
    names = ["a [1].b", "a [1].b_probabilities.npy", "a [1].b_uncertainty.nii.gz"]
    assert [path.name for path in outputs.all_of("a [1].b")] == names
    (tmp_path / "a [1].b.nii.gz").touch()  # the other form of the mask
    (tmp_path / "a 1.b_probabilities.npy").touch()
    assert outputs.existing("a [1].b") == []
    (tmp_path / "a [1].b_probabilities.npy").touch()
    assert outputs.existing("a [1].b") == [tmp_path / "a [1].b_probabilities.npy"]


def test_memory_on_a_gpu_is_counted_for_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 3_500_000)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", resets.append)
    assert summary_module.peak_device_mb(torch.device("cuda:1")) == 3.5
    assert resets == [torch.device("cuda:1")]
    assert summary_module.peak_device_mb(torch.device("cpu")) is None


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
    assert [path.name for path in out.iterdir()] == ["summary.json"]
