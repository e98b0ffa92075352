"""Which scans are found, how they are split, and what is stored of them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.made.datasets import save_nifti, write_small_dataset
from tests.made.dicom_files import write_series
from tests.pretraining.made import write_scans
from volseg.config.load import load_config
from volseg.errors import ConfigError, DataError
from volseg.io.cases import Case
from volseg.pretraining.scans import find_scans
from volseg.pretraining.store import store_folder, store_scans


def test_a_folder_of_scans_holds_out_a_tenth_and_at_least_one(tmp_path: Path) -> None:
    split = find_scans(load_config(None, [f"data.root={write_scans(tmp_path / 'scans', 5, (4, 4, 4))}"]))
    assert [case.id for case in split.held_out] == ["scan0"]
    assert [case.id for case in split.train] == ["scan1", "scan2", "scan3", "scan4"]
    assert (split.name, split.channels) == ("scans", None)
    root = [f"data.root={tmp_path / 'scans'}"]
    assert len(find_scans(load_config(None, [*root, "data.fold=all"])).train) == 5
    assert len(find_scans(load_config(None, [*root, "pretrain.held_out=0"])).train) == 5
    assert len(find_scans(load_config(None, [*root, "pretrain.held_out=0.4", "data.shots=2"])).held_out) == 2
    assert len(find_scans(load_config(None, [*root, "pretrain.held_out=0.4", "data.shots=2"])).train) == 2


def test_scans_in_sub_folders_are_found(tmp_path: Path) -> None:
    for name in ("p1/a/t1", "p1/b/t1", "p2/t1"):
        save_nifti(tmp_path / f"{name}.nii.gz", np.ones((3, 3, 3), np.float32))
    (tmp_path / ".hidden").mkdir()
    save_nifti(tmp_path / ".hidden" / "x.nii.gz", np.ones((3, 3, 3), np.float32))
    split = find_scans(load_config(None, [f"data.root={tmp_path}", "data.fold=all"]))
    assert len({case.id for case in split.train}) == 3


def test_folders_of_dicom_series_are_read(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_series(tmp_path / "scans" / name)
    split = find_scans(load_config(None, [f"data.root={tmp_path / 'scans'}", "data.fold=all"]))
    scans = store_scans(split.train, tmp_path / "cache", split.channels)
    assert [scan.id for scan in scans] == ["first", "second"]
    assert scans[0].shape == (5, 4, 6)
    assert scans[0].spacing_mm == pytest.approx((2.5, 0.75, 1.25))


def test_a_data_set_gives_its_training_cases_without_their_labels(tmp_path: Path) -> None:
    root = write_small_dataset(tmp_path / "data", cases=5)
    split = find_scans(load_config(None, [f"data.root={root}", "data.fold=1"]))
    assert len(split.train) == 4
    assert len(split.held_out) == 1
    assert split.channels == ("CT",)
    for file in (root / "labelsTr").iterdir():
        file.write_bytes(b"not a label")
    folder = store_folder(tmp_path / "cache", split.name, split.channels)
    assert len(store_scans(split.train, folder, split.channels)) == 4


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scans are given"):
        find_scans(load_config(None, []))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no scans"):
        find_scans(load_config(None, [f"data.root={tmp_path / 'empty'}"]))
    with pytest.raises(DataError, match="does not exist"):
        find_scans(load_config(None, [f"data.root={tmp_path / 'nothing'}"]))


def test_scans_beside_the_slices_of_a_series_are_refused(tmp_path: Path) -> None:
    """Searching the folder for files would leave the series out without a word."""
    write_series(tmp_path / "scans")
    save_nifti(tmp_path / "scans" / "t1.nii.gz", np.ones((3, 3, 3), np.float32))
    with pytest.raises(DataError, match="scans beside the slices of a DICOM series"):
        find_scans(load_config(None, [f"data.root={tmp_path / 'scans'}"]))


def scan_of(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Case:
    return Case(path.name.split(".")[0], (save_nifti(path, values, affine),), None)


def test_a_scan_is_stored_in_one_orientation_whatever_its_file_has(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 20, (6, 7, 8)).astype(np.float32)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    (plain,) = store_scans([scan_of(tmp_path / "a.nii.gz", values, affine)], tmp_path / "cache", None)
    image = nibabel.Nifti1Image(values, affine).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nibabel.save(image, tmp_path / "b.nii.gz")
    (turned,) = store_scans([Case("b", (tmp_path / "b.nii.gz",), None)], tmp_path / "cache", None)
    assert plain.shape == turned.shape == (8, 7, 6)  # I, P, L
    assert plain.spacing_mm == turned.spacing_mm == (4.0, 3.0, 2.0)
    assert np.array_equal(plain.volume, turned.volume)
    expected = values.transpose(2, 1, 0)[::-1, ::-1, ::-1]
    assert np.corrcoef(expected.ravel(), plain.volume[0].ravel())[0, 1] > 0.99
    assert plain.volume.dtype == np.float16
    assert abs(float(plain.volume.astype(np.float32).mean())) < 0.01


def test_ct_keeps_its_values_and_zeros_are_cropped(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1500, (8, 8, 8)).astype(np.int16)
    hu[0, 0, 0] = -1000
    case = scan_of(tmp_path / "ct.nii.gz", hu)
    (scan,) = store_scans([case], tmp_path / "cache", None)
    assert scan.is_ct == (True,)
    assert np.array_equal(np.sort(scan.volume.ravel()), np.sort(hu.ravel()).astype(np.float16))
    assert scan.samples.min() > -500
    (named,) = store_scans([case], tmp_path / "cache2", ("T1",))
    assert named.is_ct == (False,)
    masked = np.zeros((12, 12, 12), np.float32)
    masked[3:8, 3:8, 3:8] = np.random.default_rng(0).normal(100, 20, (5, 5, 5))
    (brain,) = store_scans([scan_of(tmp_path / "brain.nii.gz", masked)], tmp_path / "cache", None)
    assert brain.shape == (5, 5, 5)


def test_stored_scans_are_found_again_and_damaged_ones_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = scan_of(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(100, 20, (6, 6, 6)).astype(np.float32))
    (first,) = store_scans([case], tmp_path / "cache", None)
    written = (first.folder / "volume.npy").stat().st_mtime_ns
    assert store_scans([case], tmp_path / "cache", None) == [first]
    assert (first.folder / "volume.npy").stat().st_mtime_ns == written
    content = first.volume.copy()
    with (first.folder / "volume.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    store_scans([case], tmp_path / "cache", None)
    assert "made anew" in caplog.text
    assert np.array_equal(first.volume, content)
