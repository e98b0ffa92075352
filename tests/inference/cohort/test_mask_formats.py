"""In which files ``volseg predict`` writes masks: those of the scan, those of ``--format``, or the named one."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

import volseg
from tests.made.folder_runs import Image, change_model, on_disk, statuses
from volseg.errors import ConfigError, OutputError
from volseg.evaluation.sources import find_masks
from volseg.inference.cohort.run import predict_folder
from volseg.inference.predictor import Predictor
from volseg.io.volumes import read_grid, read_mask

KINDS = {
    "a": (".nii.gz", ".nii.gz"),
    "b": (".nii", ".nii.gz"),
    "c": (".img", ".nii.gz"),
    "d": (".nrrd", ".seg.nrrd"),
    "e": (".seg.nrrd", ".seg.nrrd"),
    "f": (".nhdr", ".seg.nrrd"),
    "g": (".mha", ".mha"),
    "h": (".mhd", ".mha"),
    "i": (".mgz", ".mgz"),
    "j": (".mgh", ".mgz"),
}
"""Name of a case, the ending of its scan, and that of its mask."""


@pytest.fixture
def mixed(tmp_path: Path, scan: Image) -> Path:
    """The same scan in every kind of file."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    image = SimpleITK.ReadImage(str(tmp_path / "scan.nii.gz"))
    for name, (ending, _) in KINDS.items():
        if ending in (".mgz", ".mgh"):
            nibabel.save(nibabel.MGHImage(np.asanyarray(scan.dataobj), scan.affine), folder / f"{name}{ending}")
        elif ending in (".img", ".nii.gz", ".nii"):
            nibabel.save(
                (nibabel.Nifti1Pair if ending == ".img" else Image)(scan.dataobj, scan.affine),
                folder / f"{name}{ending}",
            )
        else:
            SimpleITK.WriteImage(image, str(folder / f"{name}{ending}"))
    return folder


def mask_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".json", ".jsonl"))


def test_masks_are_written_in_the_kind_of_their_scan(predictor: Predictor, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = predict_folder(predictor, mixed, out)
    assert mask_names(out) == [f"{name}{ending}" for name, (_, ending) in KINDS.items()]
    expected = read_mask(out / "a.nii.gz")
    assert len(np.unique(expected.labels)) == 4
    for name, (scan_ending, ending) in KINDS.items():
        mask = read_mask(out / f"{name}{ending}")
        assert np.array_equal(mask.labels, expected.labels)
        assert mask.grid.same_as(read_grid(mixed / f"{name}{scan_ending}"), tolerance_mm=1e-4)
    assert on_disk(summary)["labels"] == predictor.plan.labels
    line = json.loads((out / "records.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert line["labels"] == predictor.plan.labels
    assert set(statuses(predict_folder(predictor, mixed, out)).values()) == {"skipped"}


def test_records_and_scores_of_a_requested_format(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    name, ending, out = "seg.nrrd", ".seg.nrrd", tmp_path / "out"
    for shard in ((0, 2), (1, 2)):
        predict_folder(predictor, scans, out, mask_format=name, shard=shard)
    masks = mask_names(out)
    assert len(masks) == 3
    assert all(mask.endswith(ending) for mask in masks)
    assert set(statuses(predict_folder(predictor, scans, out, mask_format=name)).values()) == {"skipped"}
    predict_folder(predictor, scans, tmp_path / "nifti")
    scores = volseg.evaluate(out, tmp_path / "nifti", labels=predictor.plan.labels)
    assert {score["dice"] for result in scores.evaluation.results for score in result.scores.values()} == {1.0}
    change_model(predictor, scans, out)
    assert set(statuses(predict_folder(predictor, scans, out, mask_format=name)).values()) == {"failed"}
    again = predict_folder(predictor, scans, out, mask_format=name, overwrite=True)
    assert set(statuses(again).values()) == {"done"}
    (out / f"plain{ending}").write_bytes(b"mine")
    changed = statuses(predict_folder(predictor, scans, out, mask_format=name, overwrite=True))
    assert changed["plain"] == "failed"
    assert (out / f"plain{ending}").read_bytes() == b"mine"


def test_class_files_have_the_kind_of_their_scan_too(predictor: Predictor, mixed: Path, tmp_path: Path) -> None:
    predict_folder(predictor, mixed / "d.nrrd", tmp_path, split_classes=True)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        f"{name}.seg.nrrd" for name in ("left", "right", "top")
    ]
    image = SimpleITK.ReadImage(str(tmp_path / "d" / "right.seg.nrrd"))
    assert (image.GetMetaData("Segment0_Name"), image.GetMetaData("Segment0_LabelValue")) == ("right", "1")
    assert statuses(predict_folder(predictor, mixed / "d.nrrd", tmp_path, split_classes=True)) == {"d": "skipped"}


@pytest.mark.parametrize("name", ["x.nii.gz", "y.NII.GZ", "z.seg.nrrd", "v.mha", "w.mgh"])
def test_one_scan_into_a_file(name: str, predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    """The file may lie beside the scan, and its records have its name."""
    stem = name[0]
    assert statuses(predict_folder(predictor, scans / "plain.nii.gz", scans / name)) == {"plain": "done"}
    added = {path.name for path in scans.iterdir()} - {
        f"{case}.nii.gz" for case in ("plain", "größe_日本", "a scan with spaces")
    }
    assert added == {name, f"{stem}.records.jsonl", f"{stem}.summary.json"}
    assert np.array_equal(read_mask(scans / name).labels, predictor.predict(scans / "plain.nii.gz").labels)
    assert statuses(predict_folder(predictor, scans / "plain.nii.gz", scans / name)) == {"plain": "skipped"}
    change_model(predictor, scans, scans)
    assert statuses(predict_folder(predictor, scans / "plain.nii.gz", scans / name)) == {"plain": "failed"}
    again = predict_folder(predictor, scans / "plain.nii.gz", scans / name, overwrite=True)
    assert statuses(again) == {"plain": "done"}


def test_a_file_that_volseg_did_not_write_is_not_replaced(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(b"mine")
    for overwrite in (False, True):
        summary = predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "x.nii.gz", overwrite=overwrite)
        assert statuses(summary) == {"plain": "failed"}
    assert (tmp_path / "x.nii.gz").read_bytes() == b"mine"
    with pytest.raises(OutputError, match="would replace a scan"):
        predict_folder(predictor, scans / "plain.nii.gz", scans / "plain.nii.gz", overwrite=True)


def test_files_that_cannot_be_are_refused_before_anything_is_written(
    predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    one, out = scans / "plain.nii.gz", tmp_path / "out"
    with pytest.raises(ConfigError, match="several scans"):
        predict_folder(predictor, scans, out / "x.nii.gz")
    with pytest.raises(ConfigError, match="one file per class"):
        predict_folder(predictor, one, out / "x.nii.gz", split_classes=True)
    with pytest.raises(ConfigError, match="not that of the format"):
        predict_folder(predictor, one, out / "x.nii.gz", mask_format="mha")
    with pytest.raises(ConfigError, match=r"seg\.nrrd"):
        predict_folder(predictor, one, out, mask_format="seg.nrd")
    for name in ("x.dcm", "x.mhd", "x.hdr"):
        with pytest.raises(ConfigError, match=rf"{name}(.|\n)*\.seg\.dcm"):
            predict_folder(predictor, one, out / name)
    assert not out.exists()


def test_a_sheared_scan_fails_before_it_is_segmented_where_the_format_has_no_shear(
    predictor: Predictor, scan: Image, tmp_path: Path
) -> None:
    affine = scan.affine.copy()
    affine[0, 2] = 1.0
    nibabel.save(Image(scan.dataobj, affine), tmp_path / "x.nii.gz")
    summary = predict_folder(predictor, tmp_path / "x.nii.gz", tmp_path / "out", mask_format="mha")
    assert "no shear" in (summary.results[0].error or "")
    assert list(summary.results[0].seconds) == ["read"]
    assert statuses(predict_folder(predictor, tmp_path / "x.nii.gz", tmp_path / "out")) == {"x": "done"}


def test_maps_beside_masks_are_passed_over_by_evaluation(
    predictor: Predictor, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict_folder(predictor, scans / "plain.nii.gz", out / "x.mha", probabilities=True, uncertainty=True)
    assert {"x.mha", "x_probabilities.nii", "x_uncertainty.nii.gz"} <= {path.name for path in out.iterdir()}
    probabilities = nibabel.load(out / "x_probabilities.nii")
    assert probabilities.affine.tobytes() == nibabel.load(scans / "plain.nii.gz").affine.tobytes()
    classes = np.asanyarray(probabilities.dataobj).argmax(axis=-1)
    values = np.array(list(predictor.plan.labels.values()))
    assert np.array_equal(values[classes], read_mask(out / "x.mha").labels)
    found = find_masks(out)
    assert (list(found.cases), caplog.text) == (["x"], "")


def test_a_folder_may_have_the_name_of_a_mask(predictor: Predictor, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").mkdir()
    predict_folder(predictor, scans / "plain.nii.gz", tmp_path / "x.nii.gz", mask_format="mgz")
    assert mask_names(tmp_path / "x.nii.gz") == ["plain.mgz"]
