"""What is wrong with one case is found together, and what the grids of its files may differ in."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.made.datasets import save_nifti
from volseg.errors import DataError, GeometryError
from volseg.io.cases import Case, GridRule
from volseg.io.checks import Inspection, check_files, inspect_case, load_case, read_label
from volseg.io.labels import LabelMap

CLASSES = LabelMap({"organ": (1,), "lesion": (2,)})
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def write(folder: Path, *, label_affine: np.ndarray = AFFINE, grids: GridRule | None = None, shape=(6, 5, 4)) -> Case:
    image = np.arange(120, dtype=np.float32).reshape(6, 5, 4)
    label = (np.arange(np.prod(shape)).reshape(shape) % 3).astype(np.uint8)
    images = (save_nifti(folder / "i.nii.gz", image, AFFINE),)
    return Case("c", images, save_nifti(folder / "l.nii.gz", label, label_affine), grids=grids or GridRule())


def inspect(case: Case) -> Inspection:
    return inspect_case(case, ("MRI",), CLASSES)


def shifted(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] = mm
    return affine


def test_all_faults_of_a_case_are_found(tmp_path: Path) -> None:
    case = write(tmp_path, label_affine=shifted(1))
    save_nifti(case.images[0], np.full((6, 5, 4), np.inf, np.float32), AFFINE)
    save_nifti(case.label, np.full((6, 5, 4), 7, np.uint8), shifted(1))
    seen = inspect(case)
    assert [error.kind for error in seen.errors] == ["not-finite", "undeclared-value", "grid"]
    assert seen.errors[1].found == "7 (120 voxels)"
    case.images[0].write_bytes(b"")
    assert [error.kind for error in inspect(case).errors] == [None, "undeclared-value"]


def test_a_fault_does_not_hide_another_of_the_same_case(tmp_path: Path) -> None:
    case = write(tmp_path, label_affine=shifted(1))
    save_nifti(case.label, np.full((6, 5, 4), 0.5, np.float32), shifted(1))
    assert [error.kind for error in inspect(case).errors] == ["label-not-integer", "grid"]
    case = write(tmp_path, label_affine=shifted(1))
    seen = inspect_case(case, ("T1", "T2"), CLASSES)
    assert [error.kind for error in seen.errors] == ["channels", "grid"]
    second = save_nifti(tmp_path / "2.nii.gz", np.full((6, 5, 4), np.nan, np.float32), shifted(2))
    both = Case("c", (*case.images, second), case.label)
    assert [error.kind for error in inspect_case(both, ("T1", "T2"), CLASSES).errors] == [
        "channel-grid",
        "not-finite",
        "grid",
    ]
    case.images[0].write_bytes(b"")
    assert [error.kind for error in inspect_case(both, ("T1", "T2"), CLASSES).errors] == [None, "not-finite"]


def test_channels_are_all_looked_at(tmp_path: Path) -> None:
    images = [save_nifti(tmp_path / f"{n}.nii.gz", np.full((6, 5, 4), n, np.int16)) for n in range(2)]
    seen = inspect_case(Case("c", tuple(images), None), ("T1", "T2"), CLASSES)
    assert [(error.kind, error.file) for error in seen.errors] == [("constant", str(image)) for image in images]
    gone = inspect_case(Case("c", (tmp_path / "a.nii", tmp_path / "b.nii"), None), ("T1", "T2"), CLASSES)
    assert [error.kind for error in gone.errors] == ["missing-file"] * 2


@pytest.mark.parametrize(
    ("mm", "tolerance_mm", "kinds"),
    [
        (0.0005, 0.01, []),  # rounding
        (0.005, 0.01, ["grid-tolerance"]),
        (0.4, 0.5, ["grid-tolerance"]),
        (0.4, 0.01, ["grid"]),
    ],
)
def test_the_tolerance(mm: float, tolerance_mm: float, kinds: list[str], tmp_path: Path) -> None:
    case = write(tmp_path, label_affine=shifted(mm), grids=GridRule(tolerance_mm))
    seen = inspect(case)
    assert [found.kind for found in (*seen.errors, *seen.findings)] == kinds
    if seen.mask is not None:
        assert seen.mask.grid == seen.volume.grid
    for finding in seen.findings:
        assert finding.message == f"corners up to {mm:g} mm from those of the image; tolerance: {tolerance_mm:g} mm"


def test_labels_in_another_order_are_reordered(tmp_path: Path) -> None:
    case = write(tmp_path)
    label = nibabel.load(case.label)
    expected = np.asarray(label.dataobj)
    nibabel.save(label.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])), case.label)
    seen = inspect(case)
    assert [finding.kind for finding in seen.findings] == ["voxel-order"]
    np.testing.assert_array_equal(seen.mask.labels, expected)
    np.testing.assert_array_equal(read_label(case, seen.volume.grid).labels, expected)


def test_the_header_of_the_image_is_accepted_on_request(tmp_path: Path) -> None:
    """Only for labels of the same shape."""
    case = write(tmp_path, label_affine=np.eye(4))
    with pytest.raises(GeometryError, match="different grids"):
        load_case(case, ("MRI",), CLASSES)
    accepting = GridRule(label_takes_image_grid=True)
    seen = inspect(write(tmp_path, label_affine=np.eye(4), grids=accepting))
    assert [finding.kind for finding in seen.findings] == ["label-header"]
    assert "1 x 1 x 1 mm" in seen.findings[0].message
    assert "image: 6 x 5 x 4 voxels of 1 x 2 x 3 mm" in seen.findings[0].message
    np.testing.assert_array_equal(seen.mask.grid.affine, AFFINE)
    other = inspect(write(tmp_path, shape=(6, 5, 3), grids=accepting))
    assert [error.kind for error in other.errors] == ["grid"]


def test_shear_is_found_and_rotation_is_not(tmp_path: Path) -> None:
    case = write(tmp_path)
    turned, tilted = AFFINE.copy(), AFFINE.copy()
    cosine, sine = np.cos(0.3), np.sin(0.3)
    turned[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) @ AFFINE[:2, :2]
    tilted[1, 2] = 3 * np.tan(np.radians(10))
    kinds = []
    for affine in (turned, tilted):
        save_nifti(case.images[0], np.arange(120, dtype=np.int16).reshape(6, 5, 4), affine)
        save_nifti(case.label, np.ones((6, 5, 4), np.uint8), affine)
        kinds.append([(finding.kind, finding.message) for finding in inspect(case).findings])
    assert kinds == [[], [("shear", "10.0 degrees from a right angle")]]


def test_a_channel_that_is_missing_is_named(tmp_path: Path) -> None:
    images = [tmp_path / f"a_000{number}.nii" for number in range(3)]
    images[0].touch()
    with pytest.raises(DataError) as error:
        check_files(images, ("T1", "T2", "FLAIR"))
    text = str(error.value)
    assert "1 of 3 channels" in text
    assert "T1, T2, FLAIR" in text
    assert "add a_0001.nii (T2), a_0002.nii (FLAIR)" in text
    check_files(images[1:], ("T1", "T2"))  # all are missing, as reading the first says
    check_files(images[:1], ("T1", "T2"))
