from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.made.allocations import little_memory
from tests.made.prepared_cases import made_plan, write_case
from tests.made.traces import restore_labels
from volseg.errors import DataError, GeometryError
from volseg.geometry import ops
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.planning.channel import ChannelIntensity
from volseg.preprocessing.preprocess import (
    LOCATIONS_PER_CLASS,
    class_indices,
    class_locations,
    preprocess_case,
    preprocess_image,
)

RAS = np.diag([1.0, 1.0, 2.0, 1.0])  # the plan's own spacing, so nothing is resampled


def test_the_image_is_turned_and_scaled() -> None:
    data = np.random.default_rng(0).integers(-100, 200, (1, 9, 8, 5)).astype(np.int16)
    image, trace = preprocess_image(Volume(data, Grid((9, 8, 5), RAS)), made_plan())
    assert image.grid.orientation == "SPL"
    assert image.grid.spacing_mm == (2.0, 1.0, 1.0)
    assert image.data.dtype == np.float32
    expected = (data[0].transpose(2, 1, 0)[:, ::-1, ::-1] - 50.0) / 25
    np.testing.assert_allclose(image.data[0], expected, atol=1e-6)
    assert trace.source == Grid((9, 8, 5), RAS)
    assert trace.target == image.grid


@pytest.mark.parametrize("codes", ["LPS", "ASL", "PIR"])
def test_the_order_of_the_file_axes_does_not_matter(codes: str) -> None:
    data = np.random.default_rng(0).normal(0, 100, (1, 12, 10, 9))
    grid = Grid((12, 10, 9), np.diag([0.7, 0.8, 3.0, 1.0]))
    plain, _ = preprocess_image(Volume(data, grid), made_plan())
    other, _ = preprocess_image(Volume(*ops.reorient(data, grid, codes)), made_plan())
    np.testing.assert_allclose(other.data, plain.data, atol=1e-5)
    assert other.grid.same_as(plain.grid, 1e-6)


def test_cropping_to_nonzero_is_recorded() -> None:
    data = np.zeros((1, 9, 8, 5), dtype=np.float32)
    data[:, 2:7, 3:6, 1:4] = np.random.default_rng(0).uniform(1, 2, (1, 5, 3, 3))
    plan = made_plan(crop_nonzero=True, intensity=(ChannelIntensity(rule="zscore", nonzero=True),))
    image, trace = preprocess_image(Volume(data, Grid((9, 8, 5), RAS)), plan)
    assert image.data.shape == (1, 3, 3, 5)
    ones = np.ones(image.grid.shape, dtype=np.uint8)
    np.testing.assert_array_equal(restore_labels(trace, ones), data[0] != 0)


def test_a_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(DataError, match="number of channels"):
        preprocess_image(Volume(np.zeros((2, 3, 3, 3)), Grid((3, 3, 3), RAS)), made_plan())


@pytest.mark.parametrize("ignored", [None, 255])
def test_file_values_become_class_indices(ignored: int | None) -> None:
    labels = np.array([0, 1, 5, 255 if ignored else 0]).reshape(1, 2, 2)
    expected = [0, 1, 2, -1 if ignored else 0]
    result = class_indices(labels, made_plan(ignore_label=ignored))
    assert result.dtype == np.int8
    assert result.ravel().tolist() == expected


def test_many_classes_take_a_wider_type() -> None:
    plan = made_plan(labels={"background": 0} | {f"c{value}": value for value in range(1, 200)})
    result = class_indices(np.array([[[0, 150, 199]]]), plan)
    assert result.dtype == np.int16
    assert result.ravel().tolist() == [0, 150, 199]


def test_locations_are_voxels_of_their_class() -> None:
    label = np.random.default_rng(0).integers(-1, 4, (40, 50, 30)).astype(np.int8)
    locations = class_locations(label)
    classes, voxels = locations[:, 0], locations[:, 1:]
    np.testing.assert_array_equal(label[tuple(voxels.T)], classes)
    assert set(classes) == {1, 2, 3}
    assert (np.diff(classes) >= 0).all()
    assert max(np.bincount(classes)) == LOCATIONS_PER_CLASS
    assert class_locations(label * 0).shape == (0, 4)


def test_locations_of_regions_are_voxels_of_any_of_their_labels() -> None:
    label = np.random.default_rng(0).integers(-1, 4, (10, 8, 6)).astype(np.int8)
    locations = class_locations(label, ((1, 3), (3,)))
    for number, members in ((1, (1, 3)), (2, (3,))):
        voxels = locations[locations[:, 0] == number, 1:]
        assert len(voxels) == np.isin(label, members).sum()
        assert set(label[tuple(voxels.T)].tolist()) == set(members)


def test_image_and_label_stay_together(tmp_path: Path) -> None:
    """A bright ball that is also the label is still both after reorienting, cropping and resampling."""
    distance = np.linalg.norm(np.indices((30, 32, 20)) - np.array([14, 17, 9])[:, None, None, None], axis=0)
    label = (distance < 6).astype(np.uint8) * 5
    image = np.where(label, 150, -50).astype(np.int16)
    image[:, :, 17:] = 0
    affine = np.array([[0, 0, 1.5, 3], [-0.8, 0, 0, 5], [0, 0.9, 0, -8], [0, 0, 0, 1.0]])
    case = write_case(tmp_path, "ball", image, label, affine)
    prepared = preprocess_case(case, made_plan(crop_nonzero=True))
    assert prepared.image.shape[1:] == prepared.label.shape == prepared.grid.shape
    bright = prepared.image[0] > 0
    overlap = (bright & (prepared.label == 2)).sum() / (bright | (prepared.label == 2)).sum()
    assert overlap > 0.95
    back = restore_labels(prepared.trace, prepared.label)
    assert back.shape == label.shape
    assert 2 * ((back == 2) & (label == 5)).sum() / ((back == 2).sum() + (label == 5).sum()) > 0.9


def test_a_label_in_another_voxel_order_gives_the_same_case(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    label, image = rng.choice([0, 1, 5], (8, 9, 10)).astype(np.uint8), rng.normal(size=(8, 9, 10)).astype(np.float32)
    case = write_case(tmp_path, "a", image, label, np.diag([2.0, 2.0, 3.0, 1.0]))
    expected = preprocess_case(case, made_plan())
    assert case.label is not None
    turned = nibabel.load(case.label).as_reoriented(nibabel.orientations.axcodes2ornt("SLP"))
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(turned.dataobj), turned.affine), case.label)
    found = preprocess_case(case, made_plan())
    assert np.array_equal(found.label, expected.label)
    assert np.array_equal(found.image, expected.image)


def test_the_ignored_label_survives_resampling(tmp_path: Path) -> None:
    label = np.zeros((12, 12, 6), dtype=np.uint8)
    label[:6] = 255
    label[6:, 6:] = 1
    image = np.random.default_rng(0).normal(size=(12, 12, 6)).astype(np.float32)
    prepared = preprocess_case(
        write_case(tmp_path, "c", image, label, np.diag([2.0, 2.0, 3.0, 1.0])), made_plan(ignore_label=255)
    )
    assert set(np.unique(prepared.label)) == {-1, 0, 1}
    assert set(prepared.locations[:, 0]) == {1}


def test_a_voxel_size_of_another_order_of_magnitude_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """At 1 mm the scan would have 64 times a thousand slices."""
    affine = np.diag([1.0, 1.0, 1000.0, 1.0])
    image, label = np.arange(64**3, dtype=np.float32).reshape(64, 64, 64), np.ones((64, 64, 64), np.uint8)
    case = write_case(tmp_path, "thick", image, label, affine)
    plan = made_plan(spacing_mm=(1.0, 1.0, 1.0))
    with little_memory(), pytest.raises(GeometryError, match=r"262144 voxels of 1000 x 1 x 1 mm") as error:
        preprocess_case(case, plan)
    assert "thick" in str(error.value)
    with little_memory(), pytest.raises(GeometryError, match="another order"):
        preprocess_image(Volume(image[None], Grid((64, 64, 64), affine)), plan)
