from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg.errors import DataError
from volseg.io.datasets import Case, read_dataset
from volseg.io.description import read_label_map
from volseg.io.volumes import read_mask

LABELS = np.zeros((4, 3, 2), np.uint8)
LABELS[1:3] = 2
LABELS[3] = 5


def scan(path: Path, data=LABELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
    return path


def describe(root: Path, **values) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


DECATHLON = {"name": "Test", "modality": {"0": "CT"}, "labels": {"0": "background", "2": "liver", "1": "spleen"}}


def decathlon(root: Path, names=("b", "a"), **changes) -> Path:
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    describe(root, **{**DECATHLON, "training": training, **changes})
    touch(*(root / folder / f"{n}.nii.gz" for n in names for folder in ("imagesTr", "labelsTr")))
    return root


NNUNET = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "edema": 2, "core": 1, "ignore": 3}}


def nnunet(root: Path, names=("b", "a"), ending=".nii.gz", **changes) -> Path:
    describe(root, **{**NNUNET, "file_ending": ending, **changes})
    touch(*(root / "imagesTr" / f"{n}_{c:04d}{ending}" for n in names for c in (1, 0)))
    touch(*(root / "labelsTr" / f"{n}{ending}" for n in names))
    return root


def plain(root: Path, names=("b", "a")) -> Path:
    for name in names:
        scan(root / "images" / f"{name}.nii.gz", LABELS.astype(np.int16) * 100)
        scan(root / "labels" / f"{name}.nii.gz")
    return root


# --- what is read ---


def test_decathlon(tmp_path) -> None:
    root = decathlon(tmp_path / "Aufgabe 1 ä", names=("b", "a", "é 1"))
    touch(root / "imagesTr" / "._a.nii.gz", root / "imagesTr" / "unlisted.nii.gz", root / "imagesTs" / "t.nii.gz")
    dataset = read_dataset(root)
    assert dataset.name == "Test"
    assert [case.id for case in dataset.cases] == ["a", "b", "é 1"]
    assert dataset.cases[0] == Case("a", (root / "imagesTr/a.nii.gz",), root / "labelsTr/a.nii.gz")
    assert dataset.channels == ("CT",)
    assert dataset.modality == "ct"
    assert list(dataset.labels.items()) == [("background", 0), ("spleen", 1), ("liver", 2)]
    assert dataset.ignore_label is None


def test_decathlon_with_several_channels_in_a_file(tmp_path) -> None:
    modality = {"0": "FLAIR", "1": "T1w", "10": "late", "2": "T2w"}
    dataset = read_dataset(str(decathlon(tmp_path, modality=modality)))
    assert dataset.channels == ("FLAIR", "T1w", "T2w", "late")
    assert dataset.modality == "mri"


def test_decathlon_entries_state_patients_and_folds(tmp_path) -> None:
    entry = {"image": "imagesTr/{}.nii.gz", "label": "labelsTr/{}.nii.gz"}
    listed = {name: {key: text.format(name) for key, text in entry.items()} for name in "abc"}
    training = [{**listed["a"], "fold": 3, "patient": 7, "age": 70}, listed["b"]]
    root = decathlon(tmp_path, names="abc", training=training, validation=[listed["c"]])
    assert [(case.id, case.patient, case.fold) for case in read_dataset(root).cases] == [
        ("a", "7", 3),
        ("b", None, None),
        ("c", None, 0),
    ]


def test_a_case_under_training_and_validation_is_named_with_both(tmp_path) -> None:
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "ab"]
    root = decathlon(tmp_path, names="ab", training=listed, validation=listed[1:])
    with pytest.raises(DataError, match="b: entry 2 of training, entry 1 of validation"):
        read_dataset(root)
    root = decathlon(tmp_path / "fold", names="ab", training=[listed[0], {**listed[1], "fold": "a"}])
    with pytest.raises(DataError, match=r"not a whole number(.|\n)*dataset\.json(.|\n)*found: b: 'a'"):
        read_dataset(root)


def test_decathlon_validation_is_fold_0_where_training_has_no_folds(tmp_path, caplog) -> None:
    entry = {"image": "imagesTr/{}.nii.gz", "label": "labelsTr/{}.nii.gz"}
    listed = {name: {key: text.format(name) for key, text in entry.items()} for name in "abc"}
    for training_fold, expected in ((None, [None, 0, 0]), (1, [1, 2, 0])):
        training = [{**listed["a"], **({} if training_fold is None else {"fold": training_fold})}]
        root = tmp_path / str(training_fold)
        decathlon(root, names="abc", training=training, validation=[{**listed["b"], "fold": 2}, listed["c"]])
        assert [case.fold for case in read_dataset(root).cases] == expected
        said = "held out in fold 0; their own folds are not used" in caplog.text
        assert said == (training_fold is None)
        caplog.clear()


def test_decathlon_entries_that_stand_for_numbered_channels(tmp_path) -> None:
    root = decathlon(tmp_path, names=("a",))
    (root / "imagesTr/a.nii.gz").rename(root / "imagesTr/a_0001.nii.gz")
    touch(root / "imagesTr/a_0000.nii.gz")
    assert [path.name for path in read_dataset(root).cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_nnunet(tmp_path) -> None:
    root = nnunet(tmp_path / "Dataset001_Brain", names=("case_0002", "case_0001"))
    touch(root / "imagesTr" / "._case_0001_0000.nii.gz", root / "labelsTr" / ".DS_Store")
    dataset = read_dataset(root)
    assert dataset.name == "Dataset001_Brain"
    assert [case.id for case in dataset.cases] == ["case_0001", "case_0002"]
    assert [p.name for p in dataset.cases[0].images] == ["case_0001_0000.nii.gz", "case_0001_0001.nii.gz"]
    assert dataset.cases[0].label == root / "labelsTr/case_0001.nii.gz"
    assert dataset.channels == ("T1", "FLAIR")
    assert dataset.labels == {"background": 0, "core": 1, "edema": 2}
    assert dataset.ignore_label == 3


def test_a_byte_order_mark_does_no_harm(tmp_path) -> None:
    root = nnunet(tmp_path, ending=".nii")
    (root / "dataset.json").write_bytes(b"\xef\xbb\xbf" + (root / "dataset.json").read_bytes())
    assert len(read_dataset(root).cases) == 2


def test_plain_folders_discover_labels_and_leave_the_modality_open(tmp_path) -> None:
    root = plain(tmp_path / "mine")
    touch(root / "images" / "._a.nii.gz", root / "labels" / "notes.txt")
    dataset = read_dataset(root)
    assert dataset.name == "mine"
    assert [case.id for case in dataset.cases] == ["a", "b"]
    assert dataset.labels == {"background": 0, "label_2": 2, "label_5": 5}
    assert dataset.channels == ("unknown",)


def test_plain_folders_with_a_description(tmp_path) -> None:
    root = plain(tmp_path)
    (root / "labels/a.nii.gz").unlink()
    nibabel.save(nibabel.Nifti1Image(LABELS, np.eye(4)), root / "labels/a.nii")
    describe(root, name="Mine", labels={"kidney": 2, "Ignore": 5}, modality="CT")
    dataset = read_dataset(root)
    assert dataset.name == "Mine"
    assert dataset.labels == {"background": 0, "kidney": 2}
    assert dataset.ignore_label == 5
    assert dataset.modality == "ct"
    assert dataset.cases[0].label == root / "labels/a.nii"


# --- what is refused ---


def refused(root: Path, *words: str) -> None:
    with pytest.raises(DataError) as error:
        read_dataset(root)
    for word in (str(root), *words):
        assert word in str(error.value)


def test_a_list_with_folds_none_of_whose_files_exists_is_no_other_layout(tmp_path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii.gz").touch()
    entry = {"image": "old/a.nii.gz", "label": "old/a_seg.nii.gz"}
    description = {"labels": {"0": "background", "1": "organ"}, "modality": {"0": "CT"}, "training": [entry]}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert [case.id for case in read_dataset(tmp_path).cases] == ["a"]
    description["training"] = [{**entry, "fold": 1}]
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="none of the listed files exists"):
        read_dataset(tmp_path)


def test_no_dataset(tmp_path) -> None:
    refused(tmp_path / "nowhere", "does not exist")
    refused(tmp_path, "no dataset", "an empty folder", "images/")
    touch(tmp_path / "scans" / "a.nii.gz")
    refused(tmp_path, "no dataset", "scans")


def test_datasets_without_cases(tmp_path) -> None:
    refused(decathlon(tmp_path / "d", names=()), "no labelled cases")
    (tmp_path / "p/images").mkdir(parents=True)
    (tmp_path / "p/labels").mkdir()
    refused(tmp_path / "p", "no scans")
    describe(tmp_path / "n", **NNUNET)
    refused(tmp_path / "n", "there is no dataset", "imagesTr")
    (tmp_path / "n/imagesTr").mkdir()
    refused(tmp_path / "n", "labelsTr", "cannot be read")


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_damaged_description(tmp_path, content) -> None:
    (tmp_path / "dataset.json").write_text(content)
    refused(tmp_path, "dataset.json")


def test_decathlon_files_that_are_missing_are_all_named(tmp_path) -> None:
    root = decathlon(tmp_path, names=("a", "b", "c"))
    (root / "imagesTr/a.nii.gz").unlink()
    (root / "labelsTr/c.nii.gz").unlink()
    refused(root, "do not exist", "imagesTr/a.nii.gz", "labelsTr/c.nii.gz", "missing-file, 2 found")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": [{"image": "x"}]}, '"training"'),
        ({"training": None}, '"training"'),
        ({"training": ["x"]}, '"training"'),
        ({"training": [{"image": "x", "label": "y", "fold": "first"}]}, "found: x: 'first'"),
        ({"labels": None}, "has no labels"),
        ({"labels": {"zero": "background"}}, "class 'zero'"),
        ({"labels": ["liver"]}, '"labels"'),
        ({"modality": {"first": "CT"}}, '"modality"'),
    ],
)
def test_decathlon_descriptions_of_another_kind(tmp_path, changes, message) -> None:
    refused(decathlon(tmp_path, **changes), message, "dataset.json")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "background", "1": "tumour", "2": "tumour"}, "two label values have the same name"),
        ({"0": "background", "-1": "tumour"}, "class 'tumour' has no usable label value"),
        ({"1": "background", "2": "tumour"}, "background must have the value 0"),
        ({"0": "background", "1": "a", "01": "b"}, "a label value is given twice"),
        ({"0": "background", "1": "a", "2": "ignore", "3": "Ignore"}, "two labels are called ignore"),
        ({"0": "background", "1": "a", "70000": "b"}, "class 'b' has no usable label value"),
        ({"0": "background", "1": "a", "2": "a "}, "two labels are called 'a'"),
        ({"background": 0, "a": 1, "b": 1}, "'a' and 'b' have the same value"),
        ({"background": 0, "a": [1, 2], "b": [2, 1]}, "'a' and 'b' have the same value"),
        ({"background": 0, "a": 1, "ignore": [2, 3]}, "ignore label has several values"),
        ({"background": 0, "a": [1, 2], "ignore": 2}, "class 'a' holds the value of the ignore label"),
        ({"background": 0, "whole": [0, 1, 2], "core": 2}, "background must have the value 0"),
        ({"0": "background", "liver": 1}, "class '0' has no usable label value"),
        (["background", "liver"], "dataset.json is not as expected"),
    ],
)
def test_ambiguous_labels(tmp_path, labels, message) -> None:
    refused(decathlon(tmp_path, labels=labels), message, "dataset.json")


def test_a_key_that_stands_twice(tmp_path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text('{"labels": {"background": 0, "liver": 1, "liver": 2}}', encoding="utf-8")
    with pytest.raises(DataError, match="the key 'liver' stands twice"):
        read_label_map(file)


def test_spaces_around_the_ignore_label(tmp_path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text('{"labels": {"0": "background", "1": "a", "2": " Ignore "}}', encoding="utf-8")
    assert read_label_map(file).ignore_label == 2


@pytest.mark.parametrize("labels", [{"0": "background"}, {"0": "background", "1": "ignore"}])
def test_no_class_but_background(tmp_path, labels) -> None:
    refused(decathlon(tmp_path, labels=labels), "no class")


def test_cases_with_the_same_name(tmp_path) -> None:
    refused(decathlon(tmp_path / "d", names=("a", "a")), "same case name", "a")
    root = plain(tmp_path / "p")
    nibabel.save(nibabel.Nifti1Image(LABELS, np.eye(4)), root / "labels/a.nii")
    refused(root, "same case name", "a")


@pytest.mark.parametrize("make", [plain, nnunet])
def test_images_and_labels_without_partner_are_all_named(tmp_path, make) -> None:
    root = make(tmp_path, names=("a", "b", "c"))
    images, labels = ("images", "labels") if make is plain else ("imagesTr", "labelsTr")
    for path in (root / images).glob("a*"):
        path.unlink()
    (root / labels / "c.nii.gz").unlink()
    refused(root, "do not pair up", "a: label without image", f"c: image without label {labels}/c.nii.gz", "hint")


def test_nnunet_cases_that_lack_a_channel(tmp_path) -> None:
    root = nnunet(tmp_path)
    (root / "imagesTr/b_0000.nii.gz").unlink()
    touch(root / "imagesTr/a_0002.nii.gz")
    refused(root, "b: _0001; expected: _0000, _0001", "a: _0000, _0001, _0002; expected")


def test_nnunet_regions(tmp_path) -> None:
    dataset = read_dataset(nnunet(tmp_path, labels={"background": 0, "core": 2, "whole": [1, 2]}))
    assert dataset.labels == {"background": 0, "whole": 1, "core": 2}  # values in masks, by the order of painting
    assert dataset.label_map.class_names == ("whole", "core")


def test_long_lists_are_cut(tmp_path) -> None:
    root = decathlon(tmp_path, names=[f"{n:03d}" for n in range(40)])
    for path in (root / "imagesTr").iterdir():
        path.unlink()
    refused(root, "missing-file, 40 found", "imagesTr/004.nii.gz", "and 35 more")


# --- the real ones ---


@pytest.mark.data
@pytest.mark.parametrize(("name", "count", "classes"), [("Task04_Hippocampus", 208, 3), ("CHAOS_MR", 16, 5)])
def test_real_datasets(data_root, name, count, classes) -> None:
    dataset = read_dataset(data_root / name)
    assert len(dataset.cases) == count
    assert dataset.modality == "mri"
    assert list(dataset.labels.values()) == list(range(classes))
    assert tuple(np.unique(read_mask(dataset.cases[0].label).labels)) == tuple(range(classes))
