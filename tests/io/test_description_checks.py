"""What is doubtful in a ``dataset.json``, and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.io.layouts.test_layouts import refused, touch
from tests.made.datasets import save_nifti
from volseg.errors import DataError
from volseg.io.datasets import read_dataset
from volseg.io.description import read_description

LABELS = {"background": 0, "organ": 1}


def findings(root: Path, content: dict[str, Any]) -> list[tuple[str, str]]:
    (root / "dataset.json").write_text(json.dumps(content))
    return [(one.kind, one.message) for one in read_description(root).findings]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("channel_name", "channel_names"),
        ("Channel_Names", "channel_names"),
        ("channels", "channel_names"),
        ("modalities", "modality"),
        ("label", "labels"),
        ("Labels", "labels"),
        ("classes", "labels"),
        ("train", "training"),
        ("file_endings", "file_ending"),
        ("regions_class_orders", "regions_class_order"),
    ],
)
def test_misspelt_keys(key: str, meant: str, tmp_path: Path) -> None:
    assert findings(tmp_path, {key: "x"}) == [("not-read", f'"{key}"; did you mean "{meant}"?')]
    assert not read_description(tmp_path).names_channels


def test_keys_of_both_dialects_and_others_are_silent(tmp_path: Path) -> None:
    decathlon = {"modality": {"0": "CT"}, "labels": LABELS, "training": [], "test": [], "numTraining": 0, "numTest": 0}
    texts = ("name", "description", "reference", "licence", "license", "release", "tensorImageSize")
    assert findings(tmp_path, decathlon | dict.fromkeys(texts, "x")) == []
    nnunet = {"channel_names": {"0": "T1"}, "labels": LABELS, "file_ending": ".nrrd", "numTraining": 3, "dataset": {}}
    texts = ("overwrite_image_reader_writer", "converted_by", "author", "label_colors", "data", "tests", "image_size")
    assert findings(tmp_path, nnunet | dict.fromkeys((*texts, "label", "modalities", "train"), "x")) == []


def test_a_misspelt_key_is_a_finding_of_the_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii", "labels/a.nii")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS, "modality": "CT", "file_endings": ".nii"}))
    (finding,) = read_dataset(tmp_path).findings
    assert (finding.kind, finding.severity, finding.files) == ("not-read", "warning", (tmp_path / "dataset.json",))
    touch(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii")
    (tmp_path / "dataset.json").write_text(json.dumps({"Labels": LABELS, "channel_names": {"0": "CT"}}))
    refused(tmp_path, "has no labels", 'dataset.json has "Labels"; did you mean "labels"?')


def test_a_description_in_other_capitals(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        save_nifti(tmp_path / folder / "a.nii", np.eye(4, dtype=np.uint8)[None])
    (tmp_path / "Dataset.json").write_text("{}")
    if (tmp_path / "dataset.json").exists():
        pytest.skip("the file system ignores capitals")
    assert [one.message for one in read_dataset(tmp_path).findings] == ['"Dataset.json"; did you mean "dataset.json"?']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"channel_names": {"0": "CT"}, "modality": {"0": "MRI"}}, '"modality" states mri, "channel_names" states ct'),
        ({"channel_names": {"0": "T1", "1": "T2"}, "modality": {"0": "MRI"}}, "states mri"),
        ({"channel_names": {"0": "T1"}, "modality": "CT"}, "states ct"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "are 0, 2; expected: 0 to 1"),
        ({"modality": {"1": "T1"}}, "are 1; expected: 0 to 0"),
        ({"channel_names": ["T1", "t1 "]}, "called t1"),
    ],
)
def test_doubtful_channels(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    ((kind, text),) = findings(tmp_path, content)
    assert kind == "channel-names"
    assert message in text


@pytest.mark.parametrize(
    "content",
    [
        {"channel_names": {"0": "T1"}, "modality": {"0": "MRI"}},
        {"channel_names": {"0": "CT"}, "modality": "ct"},
        {"channel_names": {"0": "T1", "1": "T2"}, "modality": "MRI"},
        {"channel_names": {"0": "CT", "1": "PET"}, "modality": "PET/CT"},
        {"channel_names": {"1": "b", "0": "a"}},
        {"modality": ["CT", "CT"]},
        {"channel_names": {"0": "noNorm", "1": "noNorm", "2": "T1"}},
    ],
)
def test_channels_that_are_as_they_should_be(content: dict[str, Any], tmp_path: Path) -> None:
    assert findings(tmp_path, content) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"training": ["a.nii"]}, ["entry 1 of training is no object: 'a.nii'", '"training": [{']),
        (
            {"training": [{"image": "a", "label": "b"}, {"image": "c"}, {"label": "d"}]},
            ["entry 2 of training has no label: {'image': 'c'}", "entry 3 of training has no image"],
        ),
        ({"training": [], "validation": [{"image": "c", "label": None}]}, ["entry 1 of validation has no label"]),
        ({"training": {"a": 1}}, ["training: {'a': 1}"]),
        ({"dataset": {"a": {"images": ["x"]}}}, ["a has no label"]),
        ({"labels": ["background", "organ"]}, ["labels: ['background', 'organ']"]),
        ({"channel_names": {"T1": "0"}}, ["the channel numbers are T1"]),
        ({"training": [{"image": 3, "label": "b"}]}, ["a path is expected: 3"]),
    ],
)
def test_entries_that_are_not_as_expected(content: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_description(tmp_path)
    for word in (*words, "expected:"):
        assert word in str(error.value)
    assert "Error(" not in str(error.value)


@pytest.mark.parametrize("key", ["patient", "patient_id", "subject", "subject_id"])
def test_patients_of_listed_cases(key: str, tmp_path: Path) -> None:
    training = [{"image": "a.nii", "label": "b.nii", key: 7}, {"image": "c.nii", "label": "d.nii"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": training, "test": [{"image": "e.nii", key: "p"}]}))
    description = read_description(tmp_path)
    assert [case.patient for case in (*description.cases, *description.unlabelled)] == ["7", None, "p"]
