"""What prediction writes for a case beside its mask, and one file a class."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from torch import nn

from tests.made.folder_runs import GOOD, Image, MakePlan, change_model, on_disk, statuses, writing_extras
from volseg.errors import OutputError
from volseg.evaluation.masks import read_case_mask
from volseg.evaluation.sources import find_masks
from volseg.inference.cohort import outputs as outputs_module
from volseg.inference.cohort.outputs import Outputs
from volseg.inference.cohort.run import predict_folder
from volseg.inference.predictor import Predictor
from volseg.io.cases import Case
from volseg.io.content import file_sha256
from volseg.io.labels import make_label_map
from volseg.io.volumes import read_mask
from volseg.postprocessing.rules import Postprocessing


def test_extra_outputs(predictor: Predictor, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wanted now and was not then is made, without --overwrite; what is there is not made again."""
    out, calls = tmp_path / "out", writing_extras(predictor, monkeypatch)
    assert set(statuses(predict_folder(predictor, scans, out)).values()) == {"done"}
    summary = predict_folder(predictor, scans, out, probabilities=True, uncertainty=True)
    assert set(statuses(summary).values()) == {"done"}
    outputs = on_disk(summary)["cases"]["plain"]["outputs"]
    assert outputs.pop("plain.nii.gz") == file_sha256(out / "plain.nii.gz")
    assert outputs == {"plain_probabilities.nii": None, "plain_uncertainty.nii.gz": None}
    assert calls == [(False, False)] * 3 + [(True, True)] * 3
    for wanted in ({"probabilities": True, "uncertainty": True}, {"uncertainty": True}, {}):
        assert set(statuses(predict_folder(predictor, scans, out, **wanted)).values()) == {"skipped"}
    (out / "plain_probabilities.nii").unlink()
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
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    overwritten = predict_folder(predictor, scans, tmp_path / "out", split_classes=True, overwrite=True)
    assert statuses(overwritten) == {GOOD[0]: "done", GOOD[1]: "done", "plain": "failed"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


FORMS: list[dict[str, Any]] = [{}, {"mask_format": "seg.nrrd"}, {"split_classes": True}]


@pytest.mark.parametrize(("first", "second"), [*permutations(range(3), 2)])
def test_a_second_form_of_a_mask_is_refused(
    first: int, second: int, predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    """Evaluation would find two masks of a case."""
    out, scan = tmp_path / "out", scans / "plain.nii.gz"
    predict_folder(predictor, scan, out, **FORMS[first])
    before = sorted(out.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"two of a case(.|\n)*found: plain"):
            predict_folder(predictor, scan, out, **FORMS[second], overwrite=overwrite)
    assert sorted(out.rglob("*")) == before
    assert statuses(predict_folder(predictor, scan, out, **FORMS[first])) == {"plain": "skipped"}
    find_masks(out)


def test_folders_of_scans_are_no_masks(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (scans / "plain.nii.gz").rename(tmp_path / "a/scan.nii.gz")
    case = Case("a", (tmp_path / "a/scan.nii.gz",), None)
    assert statuses(predict_folder(predictor, [case], tmp_path)) == {"a": "done"}


def test_folders_that_are_not_ours_are_never_replaced(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """Neither a folder with other things in it, nor the one in which the scan lies."""
    (tmp_path / "out" / "plain").mkdir(parents=True)
    (tmp_path / "out" / "plain" / "notes.txt").write_text("mine")
    summary = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "out", split_classes=True, overwrite=True)
    assert "notes.txt" in (summary.results[0].error or "")
    scan = tmp_path / "plain" / "plain.nii.gz"
    scan.parent.mkdir()
    scan.write_bytes((scans / "plain.nii.gz").read_bytes())
    with pytest.raises(OutputError, match="would replace a scan"):
        predict_folder(predictor, scan, tmp_path, split_classes=True, overwrite=True)
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
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["records.jsonl", "summary.json"]
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


def test_names_of_outputs(tmp_path: Path) -> None:
    outputs = Outputs(folder=tmp_path, split_classes=True, probabilities=True, uncertainty=True)
    case = Case("a [1].b", (tmp_path / "scan.nii.gz",), None)
    names = ["a [1].b", "a [1].b_probabilities.nii", "a [1].b_uncertainty.nii.gz"]
    assert [path.name for path in outputs.all_of(case)] == names
    (tmp_path / "a [1].b.nii.gz").touch()  # the other form of the mask
    (tmp_path / "a 1.b_probabilities.nii").touch()
    assert outputs.existing(case) == []
    (tmp_path / "a [1].b_probabilities.nii").touch()
    assert outputs.existing(case) == [tmp_path / "a [1].b_probabilities.nii"]
