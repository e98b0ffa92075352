"""Folders of scans: which cases are done, and that nothing is replaced or skipped by mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from tests.made.folder_runs import GOOD, Image, add_bad_files, change_model, masks, on_disk, statuses
from volseg.inference.cohort import records as summary_module
from volseg.inference.cohort.run import predict_folder
from volseg.inference.options import PredictOptions
from volseg.inference.predictor import Predictor
from volseg.io.content import file_sha256
from volseg.io.datasets import list_images
from volseg.planning.plan import Plan
from volseg.planning.ranges import ScanRanges

MakePlan = Callable[..., Plan]
Build = Callable[..., nn.Module]


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
    (out / "records.jsonl").unlink()


@pytest.mark.parametrize(
    ("change", "replaced"),
    [(change_model, True), (add_model, True), (change_input, True), (edit_masks, False), (lose_records, False)],
)
def test_other_masks_are_not_replaced_unasked(
    change: Callable[[Predictor, Path, Path], None], replaced: bool, predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    """And those that volseg did not write, or that were changed since, not even with ``overwrite``."""
    out = tmp_path / "out"
    predict_folder(predictor, scans, out)
    change(predictor, scans, out)
    before = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    summary = predict_folder(predictor, scans, out)
    assert set(statuses(summary).values()) == {"failed"}
    assert all("--overwrite" in (result.error or "") for result in summary.results)
    assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == before
    overwritten = predict_folder(predictor, scans, out, overwrite=True)
    assert set(statuses(overwritten).values()) == {"done" if replaced else "failed"}
    if replaced:
        assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"skipped"}
    else:
        assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == before


def test_options_belong_to_the_record(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """Those that change a mask, and not the memory it may take."""

    def again(**changes: Any) -> set[str]:
        options = PredictOptions(**changes)
        return set(statuses(predict_folder(predictor, scans, tmp_path / "out", options=options)).values())

    assert again() == {"done"}
    assert again(tta=True) == again(skip_air=False) == again(resample_channels=True) == {"failed"}
    assert again(max_memory_bytes=10**9) == {"skipped"}


def test_a_refusal_names_what_differs(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    def refusal(**changes: Any) -> str:
        options = PredictOptions(**changes)
        return (
            predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "out", options=options).results[0].error or ""
        )

    assert refusal() == ""
    assert "found: tta was off, is on\n" in refusal(tta=True)
    assert "found: resample_channels was off, is on; skip_air was on, is off" in refusal(
        resample_channels=True, skip_air=False
    )
    change_input(predictor, scans, tmp_path / "out")
    assert re.search(r"found: the scan had SHA-256 \w{12}, has \w{12}\n", refusal())
    change_model(predictor, scans, tmp_path / "out")
    assert re.search(r"; the model was one with SHA-256 \w{12}, is \w{12}; tta was off, is on\n", refusal(tta=True))
    edit_masks(predictor, scans, tmp_path / "out")
    assert "found: a file that volseg did not write, or that was changed since" in refusal()


def test_channels_on_other_grids_are_resampled_on_request(
    make_plan: MakePlan, build: Build, scan: Image, tmp_path: Path
) -> None:
    plan = make_plan(channels=("T1", "T2"), intensity=make_plan().intensity * 2)
    predictor = Predictor.from_model(build(plan, encoder="identity"), plan, device="cpu")
    moved = np.diag([1.0, 1.0, 1.5, 1.0]) @ scan.affine
    for number, affine in enumerate((scan.affine, moved)):
        nibabel.save(Image(np.asanyarray(scan.dataobj), affine), tmp_path / f"a_000{number}.nii.gz")
    cases = list_images(tmp_path / "a_0000.nii.gz", channels=2)
    refused = predict_folder(predictor, cases, tmp_path / "out")
    assert "--resample-channels" in (refused.results[0].error or "")
    options = PredictOptions(resample_channels=True)
    assert statuses(predict_folder(predictor, cases, tmp_path / "out", options=options)) == {"a": "done"}
    assert nibabel.load(tmp_path / "out/a.nii.gz").shape == scan.shape


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
    assert sorted(name for part in parts for name in statuses(part)) == sorted(GOOD)
    assert max(len(part.results) for part in parts) == 1
    assert [part.path.name for part in parts] == [f"summary_{i}_of_4.json" for i in range(4)]
    assert all(part.path.is_file() for part in parts)
    assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"skipped"}  # known from the shards


def test_one_file(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    summary = predict_folder(predictor, scans / "größe_日本.nii.gz", tmp_path / "new" / "out")
    assert statuses(summary) == {"größe_日本": "done"}
    assert masks(tmp_path / "new" / "out") == ["größe_日本.nii.gz"]
    second = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "new" / "out")
    assert list(on_disk(second)["earlier"]) == ["größe_日本"]


def test_cases_given_one_by_one(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    cases = [case for case in list_images(scans) if case.id == "plain"]
    assert statuses(predict_folder(predictor, cases, tmp_path / "out")) == {"plain": "done"}


def test_a_list_of_scans(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.txt").write_text("scans/plain.nii.gz\nscans/gone.nii.gz  # moved\n", encoding="utf-8")
    summary = predict_folder(predictor, tmp_path / "cases.txt", tmp_path / "out")
    assert statuses(summary) == {"gone": "failed", "plain": "done"}
    assert "gone.nii.gz" in (summary.results[0].error or "")


def test_memory_on_a_gpu_is_counted_for_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 3_500_000)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", resets.append)
    assert summary_module.peak_device_mb(torch.device("cuda:1")) == 3.5
    assert resets == [torch.device("cuda:1")]
    assert summary_module.peak_device_mb(torch.device("cpu")) is None


def test_scans_that_differ_from_the_training_scans(
    predictor: Predictor, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning on the log and in the summary, which a skipped case keeps; an error where the run is strict."""
    ranges = ScanRanges(
        spacing_mm=((10.0, 10.0),) * 3,
        extent_mm=((1.0, 1e4),) * 3,
        low=((0.0, 0.0),),
        high=((1.0, 1.0),),
        identity_affine=True,
    )
    predictor.plan = replace(predictor.plan, ranges=ranges)
    for status in ("done", "skipped"):
        summary = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "out")
        assert statuses(summary) == {"plain": status}
        warnings = on_disk(summary)["cases"]["plain"]["warnings"]
        assert [text.split(":")[0] for text in warnings[:1]] == ["voxel size along R"]
    assert f"{scans / 'plain.nii.gz'}: voxel size along R" in caplog.text
    strict = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "strict", strict=True)
    assert statuses(strict) == {"plain": "failed"}
    assert "voxel size along R" in (strict.results[0].error or "")
