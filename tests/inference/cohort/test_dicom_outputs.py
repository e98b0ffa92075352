"""``volseg predict --format dicom-seg`` and ``rtstruct``: records, scores, and scans that are no series."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

import volseg
from tests.made.dicom_files import write_series
from tests.made.folder_runs import Image, change_model, statuses
from volseg.errors import ConfigError, MissingExtraError, OutputError
from volseg.inference.cohort.run import predict_folder
from volseg.inference.predictor import Predictor
from volseg.io.volumes import read_mask

pytest.importorskip("highdicom")
pytest.importorskip("rt_utils", exc_type=ImportError)
FORMATS = {"dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}


@pytest.fixture
def series(tmp_path: Path, scan: Image) -> Path:
    """A folder with the series ``a`` and ``b``."""
    pixels = np.asanyarray(scan.dataobj).transpose(2, 1, 0)
    for name, slices in (("a", 24), ("b", 22)):
        write_series(tmp_path / "series" / name, pixels[:slices], spacing_mm=(2.5, 3.0), gap_mm=2.0)
    return tmp_path / "series"


@pytest.mark.parametrize("name", FORMATS)
def test_records_and_scores_of_masks_in_dicom(name: str, predictor: Predictor, series: Path, tmp_path: Path) -> None:
    series, out = series / "a", tmp_path / "out"
    assert set(statuses(predict_folder(predictor, series, out, mask_format=name)).values()) == {"done"}
    assert set(statuses(predict_folder(predictor, series, out, mask_format=name)).values()) == {"skipped"}
    predict_folder(predictor, series, tmp_path / "nifti")
    assert (tmp_path / "nifti" / "a.nii.gz").is_file()
    expected = read_mask(tmp_path / "nifti" / "a.nii.gz")
    assert np.unique(expected.labels).tolist() == [0, 205, 500, 600]
    assert np.array_equal(read_mask(out / f"a{FORMATS[name]}").labels, expected.labels)
    scores = volseg.evaluate(out, tmp_path / "nifti", labels=predictor.plan.labels)
    assert {score["dice"] for result in scores.evaluation.results for score in result.scores.values()} == {1.0}
    change_model(predictor, series, out)
    assert set(statuses(predict_folder(predictor, series, out, mask_format=name)).values()) == {"failed"}
    again = predict_folder(predictor, series, out, mask_format=name, overwrite=True)
    assert set(statuses(again).values()) == {"done"}


def test_one_file_and_a_mask_from_python(predictor: Predictor, series: Path, tmp_path: Path) -> None:
    predict_folder(predictor, series / "a", tmp_path / "x.seg.dcm")
    predictor.predict(series / "a").save(tmp_path / "y.seg.dcm")
    first, second = (read_mask(tmp_path / f"{name}.seg.dcm") for name in "xy")
    assert np.array_equal(first.labels, second.labels)
    assert first.labels.any()
    labels = [segment.SegmentLabel for segment in dcmread(tmp_path / "x.seg.dcm").SegmentSequence]
    assert labels == ["left", "right", "top"]
    with pytest.raises(OutputError, match=r"among the scans|would replace"):
        predict_folder(predictor, series / "a", series / "a" / "x.seg.dcm")


@pytest.mark.parametrize("name", FORMATS)
def test_scans_that_are_no_series_fail_alone(
    name: str, predictor: Predictor, series: Path, scans: Path, tmp_path: Path
) -> None:
    (series / "plain.nii.gz").write_bytes((scans / "plain.nii.gz").read_bytes())
    summary = predict_folder(predictor, series, tmp_path / "out", mask_format=name)
    assert statuses(summary) == {"a": "done", "b": "done", "plain": "failed"}
    assert "needs a DICOM series" in (summary.results[2].error or "")
    assert "choose another --format" in (summary.results[2].error or "")


def test_what_cannot_be_is_refused_before_anything_is_written(
    predictor: Predictor, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="all classes in one file"):
        predict_folder(predictor, series, tmp_path / "out", mask_format="dicom-seg", split_classes=True)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match=r"volseg\[dicom\]"):
        predict_folder(predictor, series, tmp_path / "out", mask_format="dicom-seg")
    assert not (tmp_path / "out").exists()
