"""Images, probabilities and interpolated masks are told from label maps, also from those of many structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.made.datasets import save_nifti
from volseg.errors import DataError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask
from volseg.io.cases import Case
from volseg.io.checks import inspect_case
from volseg.io.datasets import read_dataset
from volseg.io.label_content import check_is_label_map, scattered_values
from volseg.io.labels import LabelMap
from volseg.io.remarks import collect

SHAPE = (40, 36, 20)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
RNG = np.random.default_rng(0)
INSIDE = np.linalg.norm(np.indices(SHAPE) - np.reshape([20, 18, 10], (3, 1, 1, 1)), axis=0) < 8
SOFT = (ndimage.gaussian_filter(INSIDE.astype(float), 2) * 255).astype(np.uint8)
JPEG = np.where(ndimage.binary_dilation(INSIDE) & ~ndimage.binary_erosion(INSIDE), RNG.integers(-4, 5, SHAPE), 0)


def kinds(labels: np.ndarray) -> list[str]:
    """Return the kinds of error and remarks about labels."""
    with collect() as findings:
        try:
            check_is_label_map(Mask(labels, Grid(labels.shape, AFFINE)), Path("label.nii.gz"))
        except DataError as error:
            return [str(error.kind)]
    return [one.kind for one in findings]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (RNG.integers(0, 256, SHAPE).astype(np.uint8), ["label-is-image"]),
        (RNG.normal(100, 20, SHAPE).astype(np.int16), ["label-is-image"]),
        (RNG.normal(-900, 20, SHAPE).astype(np.int16), ["label-is-image"]),
        (SOFT, ["label-is-image"]),
        ((INSIDE * 255 + JPEG).clip(0, 255).astype(np.uint8), ["label-scattered"]),
        (INSIDE.astype(np.uint8) * 255, []),
        (RNG.integers(0, 3, SHAPE).astype(np.uint8), []),
        (ndimage.label(RNG.random(SHAPE) < 0.05)[0], []),  # very small lesions, numbered
        (1 + np.ravel_multi_index([axis // 4 for axis in np.indices(SHAPE)], (10, 9, 5)), []),  # 450 structures
    ],
    ids=["random", "image", "ct", "soft", "jpeg", "mask", "few", "lesions", "structures"],
)
def test_what_label_files_hold(labels: np.ndarray, expected: list[str]) -> None:
    assert kinds(labels) == expected


def test_neighbours_are_counted_by_hand() -> None:
    plane = np.array([[0, 1, 1], [2, 3, 1]])
    assert scattered_values(plane[:, :, None]) == (3, 2)  # 1-1 twice, 1-3 twice, 2-3 once


def test_classes_of_an_image_are_not_made_up(tmp_path: Path) -> None:
    """The file is named, and the classes are those of the other labels."""
    corner = np.indices(SHAPE).sum(axis=0) < 3
    for number, label in enumerate([INSIDE, SOFT, np.where(INSIDE, -56, 2 * corner)]):
        save_nifti(tmp_path / f"images/c{number}.nii.gz", RNG.normal(100, 20, SHAPE).astype(np.float32), AFFINE)
        save_nifti(tmp_path / f"labels/c{number}.nii.gz", label.astype(np.int16), AFFINE)
    dataset = read_dataset(tmp_path, strict=False)
    assert dataset.label_map.classes == {"label_1": (1,), "label_2": (2,)}
    errors = [
        [error.kind for error in inspect_case(case, ("MRI",), dataset.label_map).errors] for case in dataset.cases
    ]
    assert errors == [[], ["label-is-image"], ["negative-value"]]
    for name in ("images/c0", "labels/c0", "images/c2", "labels/c2"):
        (tmp_path / f"{name}.nii.gz").unlink()
    assert read_dataset(tmp_path, strict=False).label_map.classes == {}
    with pytest.raises(DataError, match=r"continuous range(.|\n)*c1\.nii\.gz"):
        read_dataset(tmp_path)


def test_a_negative_value_does_not_hide_an_undeclared_one(tmp_path: Path) -> None:
    image = save_nifti(tmp_path / "i.nii.gz", RNG.normal(0, 1, SHAPE).astype(np.float32), AFFINE)
    label = save_nifti(tmp_path / "l.nii.gz", np.where(INSIDE, -1, 7).astype(np.int8), AFFINE)
    errors = inspect_case(Case("c", (image,), label), ("MRI",), LabelMap({"organ": (1,)})).errors
    assert [error.kind for error in errors] == ["negative-value", "undeclared-value"]
    assert errors[0].found == f"-1 ({np.count_nonzero(INSIDE)} voxels)"
