"""DICOM series through prediction: one mask per series, the same voxels as for the scan as NIfTI."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.made.dicom_files import stored_values, write_enhanced, write_series
from tests.made.folder_runs import on_disk, statuses
from volseg.errors import DataError, OutputError
from volseg.inference.cohort.run import predict_folder
from volseg.inference.predictor import Predictor
from volseg.io.cases import list_images
from volseg.io.volumes import read_mask, read_volume, write_map

SHAPE = (9, 14, 18)


def scan_values(seed: int) -> np.ndarray:
    return stored_values(SHAPE, seed=seed)


def names(path: Path, channels: int = 1) -> dict[str, list[str]]:
    return {case.id: [image.name for image in case.images] for case in list_images(path, channels)}


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A case as a folder, one in nested folders, one as a zip, one as NIfTI, and one without slices."""
    root = tmp_path / "scans"
    write_series(root / "anna.1", scan_values(1), plane="oblique", spacing_mm=(2, 2))
    write_series(root / "bert" / "study" / "series", scan_values(2), plane="sagittal", spacing_mm=(2, 2), suffix="")
    files = write_series(tmp_path / "unpacked", scan_values(3), spacing_mm=(2, 2))
    with zipfile.ZipFile(root / "carl.2.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    volume = read_volume(tmp_path / "unpacked")
    write_map(root / "dora.nii.gz", volume.data[0], volume.grid)
    write_enhanced(root / "emil" / "one.dcm", scan_values(5), plane="coronal", spacing_mm=(2, 2))
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").write_text("no scan")
    return root


def test_each_sub_folder_and_zip_is_a_case(cohort: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = {"anna.1": ["anna.1"], "bert": ["bert"], "carl.2": ["carl.2.zip"], "dora": ["dora.nii.gz"]}
    assert names(cohort) == {**expected, "emil": ["emil"]}
    assert "not read as scans: notes" in caplog.text
    assert names(cohort / "anna.1") == {"anna.1": ["anna.1"]}
    assert names(cohort / "bert") == {"study": ["study"]}
    assert names(cohort / "carl.2.zip", channels=2) == {"carl.2": ["carl.2.zip"]}
    assert names(cohort / "emil" / "one.dcm") == {"one": ["one.dcm"]}


def test_the_folder_that_one_stands_in_is_a_case(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cohort / "anna.1")
    assert list(names(Path())) == ["anna.1"]


def test_scans_beside_slices_are_refused(cohort: Path) -> None:
    (cohort / "dora.nii.gz").rename(cohort / "anna.1" / "mask.nii.gz")
    with pytest.raises(DataError, match=r"beside the slices[\s\S]*mask\.nii\.gz"):
        list_images(cohort / "anna.1")


def test_masks_in_dicom_are_no_slices(cohort: Path) -> None:
    (cohort / "earlier.seg.dcm").write_bytes(b"a mask")
    (cohort / "anna.1" / "earlier.rtstruct.dcm").write_bytes((cohort / "emil" / "one.dcm").read_bytes())
    assert list(names(cohort)) == ["anna.1", "bert", "carl.2", "dora", "emil"]
    assert list(names(cohort / "anna.1")) == ["anna.1"]


def test_numbered_slices_are_no_channels_but_numbered_series_are(tmp_path: Path) -> None:
    for number in range(2):
        files = write_series(tmp_path / "scans" / f"case_{number:04d}", scan_values(number))
        for index, file in enumerate(files):
            file.rename(file.with_name(f"IM_{index:04d}.dcm"))
    assert names(tmp_path / "scans" / "case_0000" / "IM_0001.dcm", channels=2) == {"IM_0001": ["IM_0001.dcm"]}
    assert names(tmp_path / "scans", channels=2) == {"case": ["case_0000", "case_0001"]}


def test_the_same_mask_as_for_nifti(predictor: Predictor, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert set(statuses(predict_folder(predictor, cohort, out)).values()) == {"done"}
    for name in ("anna.1", "bert", "carl.2.zip", "emil"):
        volume = read_volume(cohort / name)
        write_map(tmp_path / "nifti.nii.gz", volume.data[0], volume.grid)
        mask = read_mask(out / f"{name.removesuffix('.zip')}.nii.gz")
        expected = predictor.predict(tmp_path / "nifti.nii.gz")
        assert len(np.unique(mask.labels)) > 2
        assert np.array_equal(mask.labels, expected.labels)
        assert mask.grid.same_as(volume.grid)
    assert np.array_equal(read_mask(out / "carl.2.nii.gz").labels, read_mask(out / "dora.nii.gz").labels)


def test_a_series_is_known_again_by_its_slices(predictor: Predictor, cohort: Path, tmp_path: Path) -> None:
    """Other files in its folder, and the names of the folders, do not make it another scan."""
    out = tmp_path / "out"
    predict_folder(predictor, cohort, out)
    (cohort / "anna.1" / ".DS_Store").write_bytes(b"made by looking at it")
    (cohort / "bert" / "study").rename(cohort / "bert" / "other")
    slices = sorted((cohort / "emil").iterdir())
    dataset = slices[0].read_bytes()
    slices[0].write_bytes(dataset[:-1] + bytes([dataset[-1] ^ 1]))
    summary = predict_folder(predictor, cohort, out)
    assert statuses(summary) == {
        "anna.1": "skipped",
        "bert": "skipped",
        "carl.2": "skipped",
        "dora": "skipped",
        "emil": "failed",
    }
    assert on_disk(summary)["cases"]["anna.1"]["inputs"] == [str(cohort / "anna.1")]


def test_a_damaged_series_fails_alone(predictor: Predictor, cohort: Path, tmp_path: Path) -> None:
    first = min((cohort / "anna.1").iterdir())
    first.write_bytes(first.read_bytes()[:-9])
    summary = predict_folder(predictor, cohort, tmp_path / "out")
    assert statuses(summary)["anna.1"] == "failed"
    assert summary.count("done") == 4
    assert str(first) in str(on_disk(summary)["cases"]["anna.1"]["error"])


def test_masks_do_not_go_into_the_folder_of_a_series(predictor: Predictor, cohort: Path) -> None:
    with pytest.raises(OutputError, match="among the scans"):
        predict_folder(predictor, cohort / "anna.1", cohort / "anna.1")
    with pytest.raises(OutputError, match="among the scans"):
        predict_folder(predictor, cohort, cohort)


def test_lists_name_series(predictor: Predictor, cohort: Path, tmp_path: Path) -> None:
    slice_file = max((cohort / "bert" / "study" / "series").iterdir())
    file = tmp_path / "list.txt"
    file.write_text(f"{cohort / 'anna.1'}\n{slice_file}\n{cohort / 'carl.2.zip'}\n")
    cases = list_images(file)
    assert [case.id for case in cases] == [slice_file.name, "anna.1", "carl.2"]
    assert predict_folder(predictor, file, tmp_path / "out").count("done") == 3
    assert nibabel.load(tmp_path / "out" / f"{slice_file.name}.nii.gz").shape == (18, 14, 9)
