"""The same cases are found in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.made.datasets import save_nifti
from tests.made.layouts import CHANNELS, LABELS, LAYOUTS, made_dataset, subject
from volseg.errors import DataError
from volseg.io.datasets import Dataset, read_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made_dataset(tmp_path_factory.mktemp("source"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_cases(dataset: Dataset, layout: str, tmp_path: Path) -> None:
    found = read_dataset(LAYOUTS[layout](dataset, tmp_path / "root"))
    assert found.name == "Made"
    assert found.channels == CHANNELS
    assert found.labels == LABELS
    names = [subject(case.id) if layout == "bids" else case.id for case in dataset.cases]
    assert [case.id for case in found.cases] == names
    for expected, case in zip(dataset.cases, found.cases, strict=True):
        assert [path.resolve() for path in case.images] == [path.resolve() for path in expected.images]
        assert case.label is not None
        assert case.label.resolve() == expected.label.resolve()
        assert case.patient == {"bids": case.id, "table": case.id}.get(layout)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def describe(root: Path, **content: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}, **content}))
    return root


def images_of(root: Path) -> dict[str, list[str]]:
    return {case.id: [path.name for path in case.images] for case in read_dataset(root).cases}


def refused(root: Path, *words: str) -> None:
    with pytest.raises(DataError) as error:
        read_dataset(root)
    for word in words:
        assert word in str(error.value)


# --- nnU-Net ---


def test_the_file_ending_is_honoured(tmp_path: Path) -> None:
    root = describe(tmp_path, channel_names={"0": "CT"}, file_ending=".nrrd")
    touch(root, "imagesTr/a_0000.nrrd", "labelsTr/a.nrrd", "imagesTs/t_0000.nrrd")
    assert images_of(root) == {"a": ["a_0000.nrrd"]}
    assert [case.id for case in read_dataset(root).unlabelled] == ["t"]
    touch(root, "imagesTr/b_0000.nii.gz")
    refused(root, 'does not end in ".nrrd"', "b_0000.nii.gz", "correct file_ending")
    describe(root, channel_names={"0": "CT"}, file_ending=".png")
    refused(root, "file_ending is not read", ".png", ".nii.gz")
    describe(root, channel_names={"0": "CT"}, file_ending=7)
    refused(root, "dataset.json", "7", '"file_ending": ".nii.gz"')


def test_listed_paths_may_hold_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in nnU-Net's own reader."""
    touch(tmp_path / "far", "i.nii", "l.nii")
    monkeypatch.setenv("FAR_FOLDER", str(tmp_path / "far"))
    entry = {"images": ["$FAR_FOLDER/i.nii"], "label": "../far/l.nii"}
    assert images_of(describe(tmp_path / "near", channel_names=["CT"], dataset={"a": entry})) == {"a": ["i.nii"]}


@pytest.mark.parametrize("name", ["../a", "", "a\\b", ".."])
def test_names_of_cases_that_cannot_be_files(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "i.nii", "l.nii")
    describe(tmp_path, channel_names=["CT"], dataset={name: {"images": ["i.nii"], "label": "l.nii"}})
    refused(tmp_path, "cannot be file names", repr(name))


@pytest.mark.parametrize("entry", [{"images": [], "label": "x"}, {"images": ["x"]}, {"images": [1], "label": "x"}, []])
def test_lists_of_another_form(tmp_path: Path, entry: object) -> None:
    refused(describe(tmp_path, dataset={"a": entry}), '"dataset": {"case":')


def test_a_case_that_is_listed_twice_does_not_hide_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "l.nii", "m.nii")
    pairs = [{"image": f"{image}.nii", "label": f"{label}.nii"} for image, label in ("al", "bm", "al")]
    root = describe(tmp_path, training=pairs, modality={"0": "CT"})
    refused(root, "several files or entries have the same case name", "a: entry 1, entry 3")
    dataset = read_dataset(root, strict=False)
    assert [case.id for case in dataset.cases] == ["b"]
    assert [one.kind for one in dataset.findings] == ["case-name"]


def test_test_scans_are_known_where_they_exist(tmp_path: Path) -> None:
    touch(tmp_path, "i.nii", "l.nii", "t.nii", "u/1.nii", "u/2.nii")
    test = ["t.nii", {"image": ["u/1.nii", "u/2.nii"]}, "gone.nii"]
    describe(tmp_path, training=[{"image": "i.nii", "label": "l.nii"}], modality={"0": "CT"}, test=test)
    assert [case.id for case in read_dataset(tmp_path).unlabelled] == ["1", "t"]


# --- plain folders ---


def test_a_plain_folder_with_the_description_of_another_layout(tmp_path: Path) -> None:
    for number, content in enumerate(({"channel_names": {"0": "CT"}}, {"training": []}, {"training": [], "test": []})):
        root = describe(tmp_path / str(number), **content, modality={"0": "CT"})
        touch(root, "images/a.nii", "labels/a.nii")
        assert read_dataset(root).channels == ("CT",)
        assert images_of(root) == {"a": ["a.nii"]}


def test_a_list_of_other_files_is_not_dropped_in_silence(tmp_path: Path) -> None:
    training = [{"image": f"imagesTr/{name}.nii", "label": f"labelsTr/{name}.nii"} for name in "abc"]
    root = describe(tmp_path, training=training, modality={"0": "CT"})
    touch(root, "images/a.nii", "labels/a.nii")
    (finding,) = read_dataset(root).findings
    assert (finding.kind, finding.severity, finding.files) == ("list-not-used", "warning", (root / "dataset.json",))
    assert finding.message == f"3 cases, the first with {root / 'imagesTr/a.nii'}; folders are read"


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("case_1_seg", "case_1_seg.nii is similar"),
        ("CASE_1", "CASE_1.nii differs only in capitals"),
        ("cas_1", "cas_1.nii is similar"),
    ],
)
def test_the_name_that_a_label_should_have(label: str, words: str, tmp_path: Path) -> None:
    touch(describe(tmp_path, modality="CT"), "images/case_1_0000.nii", "images/b_0000.nii", "labels/b.nii")
    touch(tmp_path, f"labels/{label}.nii")
    refused(tmp_path, f"case_1: image without label labels/case_1.nii; {words}", "same name, as in images/a.nii.gz")


def test_whole_files_with_numbers_are_cases_of_plain_folders(tmp_path: Path) -> None:
    touch(describe(tmp_path, modality="CT"), *(f"{x}/case_000{n}.nii" for n in (0, 1) for x in ("images", "labels")))
    assert images_of(tmp_path) == {"case_0000": ["case_0000.nii"], "case_0001": ["case_0001.nii"]}


def test_a_hole_in_the_numbers_of_a_plain_folder(tmp_path: Path) -> None:
    touch(tmp_path, "images/a_0000.nii", "images/a_0002.nii", "images/b_0000.nii", "images/b_0001.nii")
    touch(tmp_path, "labels/a.nii", "labels/b.nii")
    refused(tmp_path, "other channels", "a: _0000, _0002; expected: _0000, _0001")
    touch(describe(tmp_path, modality=["A", "B", "C"]), "images/a_0001.nii")
    refused(tmp_path, "b: _0000, _0001; expected: _0000, _0001, _0002")


def test_the_values_of_a_damaged_label_are_not_needed(tmp_path: Path) -> None:
    """The case is refused when it is read, with all other invalid cases."""
    touch(tmp_path, "images/a.nii", "images/b.nii", "labels/b.nii")
    refused(tmp_path, "do not pair up")
    save_nifti(tmp_path / "images/a.nii", np.zeros((2, 2, 2), np.uint8))
    touch(tmp_path, "labels/a.nii")
    refused(tmp_path, "a.nii", "0 bytes")
    save_nifti(tmp_path / "labels/a.nii", np.full((2, 2, 2), 4, np.uint8))
    assert read_dataset(tmp_path).labels == {"background": 0, "label_4": 4}


def test_the_channels_of_a_damaged_case_are_not_needed(tmp_path: Path) -> None:
    touch(describe(tmp_path), "images/a.nii", "labels/a.nii")
    refused(tmp_path, "a.nii", "0 bytes")
    touch(tmp_path, "labels/b.nii")
    save_nifti(tmp_path / "images/b.nii", np.zeros((2, 2, 2, 3), np.uint8))
    assert read_dataset(tmp_path).channels == ("unknown",) * 3


# --- regions ---


def test_regions_are_read_with_their_order(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}
    touch(
        describe(tmp_path, labels=labels, modality="CT", regions_class_order=[1, 2, 3]), "images/a.nii", "labels/a.nii"
    )
    label_map = read_dataset(tmp_path).label_map
    assert label_map.classes == {"whole": (1, 2, 3), "core": (2, 3), "tip": (3,)}
    assert label_map.region_order == (1, 2, 3)
    describe(tmp_path, labels=labels, modality="CT", regions_class_order=[3, 2, 1])
    refused(tmp_path, "masks cannot hold these regions", "3 is painted as 1, which belongs to other regions")
    assert read_dataset(tmp_path, trainable=False).label_map.region_order == (3, 2, 1)
    describe(tmp_path, labels=labels, regions_class_order=[1, 2])
    refused(tmp_path, "regions_class_order in dataset.json is not valid", "found: [1, 2]", "hint: list the values")


def test_letters_in_another_unicode_form_are_named(tmp_path: Path) -> None:
    """As macOS writes them, and other systems do not."""
    touch(describe(tmp_path, modality="CT"), "images/Mu\u0308ller.nii", "labels/M\u00fcller.nii")
    if len({path.name for path in (tmp_path / "images").iterdir()} | {"M\u00fcller.nii"}) == 1:
        pytest.skip("the file system changes the form of names")
    refused(tmp_path, "looks the same, but its letters are in another Unicode form")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Images/a.nii", "Labels/a.nii"], ["did you mean images/ and labels/?", "rename Images/ and Labels/"]),
        (["images/a.nii", "masks/a.nii"], ["images/ and labels/? rename masks/"]),
        (["scans/a.nii", "cases.csv"], ["cases.csv? give the CSV itself as the data set"]),
        (["images/a.nii", "notes.csv", "cases.csv"], ["list the files in a CSV"]),
    ],
)
def test_what_a_folder_without_a_data_set_may_be(names: list[str], words: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    refused(tmp_path, "there is no dataset", *words)
