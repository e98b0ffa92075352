"""A folder per case."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tests.io.layouts.test_layouts import describe, images_of, refused, touch
from tests.made.datasets import save_nifti
from tests.made.layouts import AFFINE
from volseg.io.datasets import read_dataset

BRATS = ("t1", "t1ce", "t2", "flair", "seg")


def brats(root: Path, *names: str, mark: str = "_") -> Path:
    touch(root, *(f"{name}/{name}{mark}{role}.nii.gz" for name in names for role in BRATS))
    return root


@pytest.mark.parametrize("mark", ["_", "-"])
def test_brats(tmp_path: Path, mark: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = brats(describe(tmp_path), "BraTS_001", "BraTS_002", mark=mark)
    dataset = read_dataset(root)
    assert dataset.channels == ("flair", "t1", "t1ce", "t2")
    names = [f"BraTS_001{mark}{role}.nii.gz" for role in dataset.channels]
    assert [path.name for path in dataset.cases[0].images] == names
    assert dataset.cases[0].label == root / f"BraTS_001/BraTS_001{mark}seg.nii.gz"
    assert f"channels {', '.join(names)} (order: their names), label BraTS_001{mark}seg.nii.gz" in caplog.text


def test_the_description_orders_and_chooses_channels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = brats(describe(tmp_path, channel_names=["T2", "FLAIR"]), "p1")
    assert read_dataset(root).channels == ("T2", "FLAIR")
    assert images_of(root) == {"p1": ["p1_t2.nii.gz", "p1_flair.nii.gz"]}
    assert "not a channel of dataset.json, not read: t1, t1ce" in caplog.text
    refused(describe(root, channel_names=["CT", "T2"]), "states channels that the files do not have", "CT, T2", "flair")


@pytest.mark.parametrize(
    ("image", "label", "channel"),
    [
        ("image", "label", "unknown"),
        ("case_1", "case_1_seg", "unknown"),
        ("patient 7 CT", "patient 7 Mask", "CT"),
        ("t1", "t1_labels", "t1"),
    ],
)
def test_names_of_files(tmp_path: Path, image: str, label: str, channel: str) -> None:
    for name in (image, label):
        save_nifti(tmp_path / f"case_1/{name}.nii.gz", np.eye(3, dtype=np.uint8)[None], AFFINE)
    dataset = read_dataset(tmp_path)
    assert images_of(tmp_path) == {"case_1": [f"{image}.nii.gz"]}
    assert dataset.cases[0].label == tmp_path / f"case_1/{label}.nii.gz"
    assert dataset.channels == (channel,)


@pytest.mark.parametrize("name", ["pred", "seg_nnunet", "lesionMask2", "tumor segmentations", "softmax"])
def test_masks_do_not_become_channels(name: str, tmp_path: Path) -> None:
    """A network that sees a mask of the answer learns to copy it."""
    touch(describe(tmp_path), *(f"{case}/{file}.nii" for case in "ab" for file in ("T1", "label", name)))
    refused(tmp_path, "labels or predictions would be channels", f"{name} among T1, {name}", '"channel_names"')
    describe(tmp_path, channel_names=["T1"])
    assert images_of(tmp_path) == {"a": ["T1.nii"], "b": ["T1.nii"]}
    describe(tmp_path, channel_names=["T1", name])  # as for a second network that refines the masks of a first
    assert images_of(tmp_path)["a"] == ["T1.nii", f"{name}.nii"]


def test_a_folder_name_is_not_a_part_of_a_word(tmp_path: Path) -> None:
    touch(describe(tmp_path, modality="CT"), "i/image.nii", "i/label.nii", "j/image.nii", "j/label.nii")
    assert images_of(tmp_path) == {"i": ["image.nii"], "j": ["image.nii"]}


def test_folders_without_a_label_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(describe(tmp_path, modality="CT"), "a/image.nii", "a/label.nii", "b/image.nii", "notes/x.txt", ".cache/y.nii")
    dataset = read_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["a"]
    assert [case.id for case in dataset.unlabelled] == ["b"]
    assert "scans without a label are left out" in caplog.text
    assert f"{tmp_path / 'b'}: b has no label" in caplog.text


def test_ambiguous_folders(tmp_path: Path) -> None:
    touch(tmp_path / "labels", "a/image.nii", "a/seg.nii", "b/image.nii", "b/seg.nii", "b/old_seg.nii")
    refused(tmp_path / "labels", "b: several files that may be the label: old_seg.nii, seg.nii", "CSV")
    touch(tmp_path / "most", *(f"{name}/{role}.nii" for name in "ab" for role in ("t1", "seg")))
    touch(tmp_path / "most", "c/t1.nii", "c/t2.nii", "c/seg.nii")
    refused(tmp_path / "most", "c: t1, t2; most folders: t1", "CSV")
    touch(tmp_path / "images", "a/t1.nii", "a/seg.nii", "b/t1.nii", "b/t2.nii", "b/seg.nii")
    refused(tmp_path / "images", "different images", "t1: 1 of 2 folders, such as a", "t1, t2: 1 of 2", "CSV")
    touch(tmp_path / "twice", "a/t1.nii", "a/a_t1.nii", "a/a_seg.nii")
    refused(tmp_path / "twice", "differ only in the name of the case", "a_t1.nii", "t1.nii")
    touch(tmp_path / "all", *(f"{name}/{role}.nii" for name in "ab" for role in ("t1", "seg", "mask")))
    refused(tmp_path / "all", "2 errors", "a: several files that may be the label: mask.nii, seg.nii", "CSV")
    touch(tmp_path / "none", "a/t1.nii", "b/t1.nii")
    refused(tmp_path / "none", "there is no dataset", "CSV")
