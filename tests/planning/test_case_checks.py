"""Findings of made data sets, most of which are shown by planted faults (tests/benchmarks/test_dataset_checks.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.made.datasets import save_nifti, write_dataset
from volseg.geometry.grid import Grid
from volseg.io.datasets import read_dataset
from volseg.io.findings import Finding
from volseg.planning.case_checks import is_default
from volseg.planning.examine import examine
from volseg.planning.fingerprint import survey

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def scans(count: int, low: float = -1000, high: float = 300, shape=(10, 9, 8)) -> tuple[list[Any], list[Any]]:
    """Random images with both classes; no two labels are the same."""
    rng = np.random.default_rng(0)
    label = np.zeros(shape, np.uint8)
    label[2:6, 2:6, 2:6], label[6:8, 2:6, 2:6] = 1, 2
    labels = [label.copy() for _ in range(count)]
    for number, own in enumerate(labels):
        own[0, number // 8, number % 8], own[2, 2, 2] = 1, 0
    return [rng.uniform(low, high, shape).astype(np.int16) for _ in range(count)], labels


def found(root: Path) -> dict[str, list[Finding]]:
    kinds: dict[str, list[Finding]] = {}
    for finding in survey(read_dataset(root, strict=False)).findings:
        kinds.setdefault(finding.kind, []).append(finding)
    return kinds


def test_copies_are_found_in_another_type_and_order(tmp_path: Path) -> None:
    images, labels = scans(3)
    root = write_dataset(tmp_path, images, labels, affine=AFFINE)
    assert found(root) == {}
    for part, dtype in (("imagesTr", np.float64), ("labelsTr", np.uint16)):
        image = nibabel.load(root / part / "c0.nii.gz")
        copy = nibabel.Nifti1Image(np.asarray(image.dataobj).astype(dtype), image.affine)
        nibabel.save(copy.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]])), root / part / "c2.nii.gz")
    assert [one.message for one in found(root)["duplicate"]] == ["c0, c2"]


def messages(root: Path) -> dict[str, list[str]]:
    return {kind: [one.message for one in findings] for kind, findings in found(root).items()}


def test_a_label_as_image(tmp_path: Path) -> None:
    """In another type; as the only channel, as one of several, and of another case."""
    images, labels = scans(6, low=0)
    images[1] = labels[1].astype(np.float32)
    root = write_dataset(tmp_path / "one", images, labels, affine=AFFINE, modality="MRI")
    assert messages(root)["image-copies-label"] == ["c1: channel 0 has the voxels of its label"]
    pairs = [np.stack([image, image[::-1]], axis=-1) for image in scans(6, low=0)[0]]
    pairs[2][..., 1], pairs[4][..., 1] = labels[2], labels[5]
    root = write_dataset(tmp_path / "two", pairs, labels, affine=AFFINE, modality="MRI")
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"modality": {"0": "T1", "1": "T2"}}))
    assert messages(root)["image-copies-label"] == [
        "c2: channel 1 has the voxels of its label",
        "c4: channel 1 has the voxels of the label of c5",
    ]


def test_copies_of_channels(tmp_path: Path) -> None:
    """Within a case, and of another case; not a second time where the whole image is a copy."""
    images, labels = scans(6, low=0)
    for number, image in enumerate(images):
        for channel, voxels in enumerate((image, image[::-1])):
            save_nifti(tmp_path / f"images/c{number}_{channel:04d}.nii.gz", voxels, AFFINE)
        save_nifti(tmp_path / f"labels/c{number}.nii.gz", labels[number], AFFINE)
    assert messages(tmp_path) == {}
    save_nifti(tmp_path / "images/c1_0001.nii.gz", images[1].astype(np.float32), AFFINE)
    save_nifti(tmp_path / "images/c2_0001.nii.gz", images[3][::-1], AFFINE)
    for channel, voxels in enumerate((images[4], images[4][::-1])):
        save_nifti(tmp_path / f"images/c5_{channel:04d}.nii.gz", voxels, AFFINE)
    kinds = found(tmp_path)
    assert [one.message for one in kinds["copied-channel"]] == [
        "c1: channel 0, c1: channel 1",
        "c2: channel 1, c3: channel 1",
    ]
    assert [file.name for file in kinds["copied-channel"][1].files] == ["c2_0001.nii.gz", "c3_0001.nii.gz"]
    assert kinds["copied-channel"][0].severity == "warning"
    assert [one.message for one in kinds["conflicting-labels"]] == ["c4, c5"]


def test_copies_of_labels(tmp_path: Path) -> None:
    """Empty ones, those with a few voxels, and those of one patient may be the same."""
    images, labels = scans(6, low=0)
    labels[1] = labels[4].astype(np.int16)
    labels[2] = labels[3] = np.zeros_like(labels[2])
    root = write_dataset(tmp_path, images, labels, affine=AFFINE, modality="MRI")
    kinds = messages(root)
    assert kinds.pop("shared-label") == ["the same voxels in the labels of c1, c4"]
    assert set(kinds) == {"empty-label"}
    rows = [f"imagesTr/c{n}.nii.gz,labelsTr/c{n}.nii.gz,{'p' if n in (1, 4) else n}" for n in range(6)]
    (root / "cases.csv").write_text("\n".join(["image,label,patient", *rows]))
    assert "shared-label" not in found(root / "cases.csv")
    few = np.zeros_like(labels[0])
    few[5, 5, 2:5] = 1
    labels[1] = labels[4] = few
    assert "shared-label" not in found(write_dataset(tmp_path / "few", images, labels, affine=AFFINE, modality="MRI"))


def test_values_that_are_not_hounsfield_units(tmp_path: Path) -> None:
    images, labels = scans(6)
    images[1] = (images[1] + 1024).clip(0)
    images[2] = (images[2] / 1300).astype(np.float32)
    kinds = found(write_dataset(tmp_path, images, labels, affine=AFFINE))
    assert [one.files[0].name for one in kinds.pop("not-hounsfield")] == ["c1.nii.gz", "c2.nii.gz"]
    assert kinds == {}  # they are not named a second time as outliers


def test_a_lost_header(tmp_path: Path) -> None:
    """The identity is true where the other cases have 1 mm, too."""
    images, labels = scans(4)
    root = write_dataset(tmp_path, images, labels, affine=AFFINE)
    for part, arrays in (("imagesTr", images), ("labelsTr", labels)):
        save_nifti(root / part / "c0.nii.gz", arrays[0], np.eye(4))
        image = nibabel.Nifti1Image(arrays[1], None)  # codes 0: what NIfTI calls unknown
        nibabel.save(image, root / part / "c1.nii.gz")
    assert [one.files[0].name for one in found(root)["no-geometry"]] == ["c0.nii.gz", "c1.nii.gz"]
    one_mm = np.eye(4)
    one_mm[:3, 3] = (3, 4, 5)
    root = write_dataset(tmp_path / "1mm", images, labels, affine=one_mm)
    for part, arrays in (("imagesTr", images), ("labelsTr", labels)):
        save_nifti(root / part / "c0.nii.gz", arrays[0], np.eye(4))
    assert found(root) == {}


@pytest.mark.parametrize(
    ("axes", "origin", "lost"),
    [
        (np.eye(3), (0, 0, 0), True),
        (np.diag([-1, -1, 1]), (0, 0, 0), True),  # the identity of ITK, in LPS
        (np.diag([1, -1, 1]), (0, 4, 0), True),  # flipped
        (np.eye(3)[[2, 0, 1]], (0, 0, 0), True),  # permuted
        (np.diag([-1, 1, 1]), (1, -2, -2.5), True),  # the centre at zero
        (np.eye(3), (1, 1, 1), False),
        (np.eye(3), (-90, -126, -72), False),
        (np.diag([1, 1, 1.5]), (0, 0, 0), False),
        (Rotation.from_euler("z", 30, degrees=True).as_matrix(), (0, 0, 0), False),
    ],
)
def test_grids_of_voxels_without_geometry(axes: np.ndarray, origin: tuple[float, ...], lost: bool) -> None:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, origin
    assert is_default(Grid((3, 5, 6), affine)) == lost


def test_a_class_in_one_case_only(tmp_path: Path) -> None:
    images, labels = scans(12)
    labels = [np.where(label == 2, 0, label).astype(np.uint8) for label in labels]
    labels[3] = scans(1)[1][0]
    kinds = found(write_dataset(tmp_path, images, labels, affine=AFFINE))
    assert [one.message for one in kinds["rare-class"]] == ["lesion (2) is in 1 of 12 cases"]


def test_labels_unlike_those_of_the_other_cases(tmp_path: Path) -> None:
    images, labels = scans(6)
    labels[1] = 2 - labels[1]
    labels[2] = labels[2].copy()
    labels[2][9, 8, 7] = 3
    root = write_dataset(tmp_path, images, labels, affine=AFFINE)
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**content, "labels": {**content["labels"], "3": "other"}}))
    kinds = {kind: [(one.files[0].name, one.message) for one in ones] for kind, ones in found(root).items()}
    assert kinds == {
        "class-outlier": [("c1.nii.gz", "95.6% of the voxels are foreground; median of the cases: 13.3%")],
        "few-voxels": [("c2.nii.gz", "other (3): 1 voxel in 1 of 6 cases, none elsewhere")],
    }


def test_a_single_scan_may_show_a_corner_of_a_structure(tmp_path: Path) -> None:
    images, labels = scans(1)
    labels[0][9, 8, 7] = 2
    labels[0][6:8] = 0
    assert found(write_dataset(tmp_path, images, labels, affine=AFFINE)) == {}


def test_two_values_swapped_in_one_case(tmp_path: Path) -> None:
    images, labels = scans(6)
    labels = [np.where(np.indices(label.shape)[0] > 6, 0, label) for label in labels]  # 64 and 16 voxels
    labels[4] = np.array([0, 2, 1])[labels[4]]
    kinds = found(write_dataset(tmp_path, images, [label.astype(np.uint8) for label in labels], affine=AFFINE))
    assert list(kinds) == ["class-outlier"]
    assert [one.files[0].name for one in kinds["class-outlier"]] == ["c4.nii.gz"]
    assert kinds["class-outlier"][0].message == (
        "as if classes were swapped: organ has 0.096 ml and lesion 0.384 ml (medians of the cases: 0.384 and 0.096 ml)"
    )


def test_left_and_right_swapped_in_one_case(tmp_path: Path) -> None:
    images, _ = scans(6)
    label = np.zeros(images[0].shape, np.uint8)
    label[1:3, 3:6, 2:6], label[7:9, 3:6, 2:6] = 1, 2
    labels = [label] * 5 + [label[::-1]]
    labels = [np.roll(one, shift, axis=1) for one, shift in zip(labels, (-2, -1, 0, 1, 2, 3), strict=True)]
    kinds = found(write_dataset(tmp_path, images, labels, affine=AFFINE))
    assert {kind: [(one.files[0].name, one.message) for one in ones] for kind, ones in kinds.items()} == {
        "class-outlier": [
            (
                "c5.nii.gz",
                "as if classes were swapped: organ and lesion lie the other way round than in the other cases",
            )
        ]
    }


def test_a_ct_scan_among_mri(tmp_path: Path) -> None:
    images, labels = scans(6, low=0, high=900)
    images[3] = scans(1)[0][0]
    root = write_dataset(tmp_path, images, labels, affine=AFFINE, modality="MRI")
    findings = found(root)
    assert list(findings) == ["modality"]
    assert [one.files[0].name for one in findings["modality"]] == ["c3.nii.gz"]
    assert "is it CT?" in findings["modality"][0].message


def test_damaged_cases_do_not_hide_the_others(tmp_path: Path) -> None:
    images, labels = scans(3)
    root = write_dataset(tmp_path, images, labels, affine=AFFINE)
    (root / "imagesTr/c0.nii.gz").write_bytes(b"nothing")
    (root / "labelsTr/c1.nii.gz").unlink()
    save_nifti(root / "labelsTr/c2.nii.gz", np.zeros((10, 9, 8), np.uint8), AFFINE)
    kinds = found(root)
    assert set(kinds) == {"unreadable", "missing-file", "no-foreground", "empty-label"}


def test_a_fault_of_a_case_does_not_hide_what_its_comparison_shows(tmp_path: Path) -> None:
    images, labels = scans(6)
    images[1] = (images[1] + 1024).clip(0)
    labels[1] = np.full_like(labels[1], 7)
    images[2] = np.full(images[2].shape, np.nan, np.float32)
    labels[2] = np.zeros_like(labels[2])
    root = write_dataset(tmp_path, images, labels, affine=AFFINE)
    save_nifti(root / "labelsTr/c3.nii.gz", np.zeros_like(labels[3]), AFFINE)
    (root / "imagesTr/c3.nii.gz").write_bytes(b"nothing")
    kinds = {kind: [one.files[0].name for one in ones] for kind, ones in found(root).items()}
    assert kinds == {
        "undeclared-value": ["c1.nii.gz"],
        "not-hounsfield": ["c1.nii.gz"],
        "not-finite": ["c2.nii.gz"],
        "empty-label": ["c2.nii.gz", "c3.nii.gz"],
        "unreadable": ["c3.nii.gz"],
    }


def test_every_case_with_voxels_of_another_size_is_named(tmp_path: Path) -> None:
    images, labels = scans(7)
    root = write_dataset(tmp_path, images, labels, affine=AFFINE)
    for number in (0, 5):
        for part, arrays in (("imagesTr", images), ("labelsTr", labels)):
            save_nifti(root / part / f"c{number}.nii.gz", arrays[number], AFFINE * [[1000], [1000], [1000], [1]])
    findings = [one for one in examine(survey(read_dataset(root))).findings if one.kind == "voxel-size"]
    assert [[file.name for file in one.files] for one in findings] == [["c0.nii.gz"], ["c5.nii.gz"]]
    assert "case c0 has voxels of another order of magnitude" in findings[0].message


@pytest.mark.parametrize("labels", [{"background": 0, "organ": 0}, {"one": [1, 2], "other": [2, 3]}, {}])
def test_invalid_classes_do_not_hide_the_cases(labels: dict[str, Any], tmp_path: Path) -> None:
    images, masks = scans(3)
    root = write_dataset(tmp_path, images, masks, affine=AFFINE)
    (root / "imagesTr/c0.nii.gz").write_bytes(b"nothing")
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**content, "labels": labels}))
    assert set(found(root)) == {"labels", "unreadable"}


def test_orientations_that_are_all_different_are_not_worth_a_note(tmp_path: Path) -> None:
    images, labels = scans(6)
    root = write_dataset(tmp_path, images, labels, affine=AFFINE)
    flips = [(1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1), (-1, -1, 1), (-1, -1, -1)]
    for number, flip in enumerate(flips):
        for part in ("imagesTr", "labelsTr"):
            path = root / part / f"c{number}.nii.gz"
            nibabel.save(nibabel.load(path).as_reoriented(np.array([[axis, flip[axis]] for axis in range(3)])), path)
    assert found(root) == {}


def test_two_files_of_one_name_do_not_hide_the_others(tmp_path: Path) -> None:
    images, labels = scans(3)
    for number in range(3):
        save_nifti(tmp_path / f"images/c{number}.nii.gz", images[number], AFFINE)
        save_nifti(tmp_path / f"labels/c{number}.nii.gz", labels[number], AFFINE)
    save_nifti(tmp_path / "labels/c0.nii", labels[0], AFFINE)
    (tmp_path / "images/c2.nii.gz").write_bytes(b"nothing")
    kinds = found(tmp_path)
    assert set(kinds) == {"case-name", "unreadable"}
    assert [[file.name for file in one.files] for one in kinds["case-name"]] == [["c0.nii", "c0.nii.gz"]]


def test_no_case_is_left(tmp_path: Path) -> None:
    for name in ("images/a.nii", "labels/b.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [one.message for one in found(tmp_path)["pairing"]] == [
        "a: image without label labels/a.nii",
        "b: label without image",
    ]


def test_names_that_differ_in_capitals_do_not_pair_up(tmp_path: Path) -> None:
    images, labels = scans(2)
    for number in range(2):
        save_nifti(tmp_path / f"images/Case{number}.nii.gz", images[number], AFFINE)
        save_nifti(tmp_path / f"labels/{('case', 'Case')[number]}{number}.nii.gz", labels[number], AFFINE)
    messages = [one.message for one in found(tmp_path)["pairing"]]
    assert "Case0: image without label labels/Case0.nii.gz; case0.nii.gz differs only in capitals" in messages


def test_a_patient_in_training_and_test(tmp_path: Path) -> None:
    images, labels = scans(3)
    root = write_dataset(tmp_path, images[:2], labels[:2], affine=AFFINE)
    save_nifti(root / "imagesTs/t.nii.gz", images[2], AFFINE)
    content = json.loads((root / "dataset.json").read_text())
    content["training"][0]["patient"] = "p"
    content["test"] = [{"image": "imagesTs/t.nii.gz", "patient": "p"}]
    (root / "dataset.json").write_text(json.dumps(content))
    assert [one.message for one in found(root)["patient-in-splits"]] == ["patient p: c0: every fold, t: test"]
