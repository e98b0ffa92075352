from __future__ import annotations

import json
import math

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from volseg.errors import GeometryError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask, Volume

LAS = np.array([[-1.25, 0, 0, 100], [0, 1.25, 0, -90], [0, 0, 7.7, 5], [0, 0, 0, 1]])


def oblique(spacing=(0.8, 0.9, 3.0), angles=(12.0, -25.0, 31.0), origin=(-10.0, 20.0, 33.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def test_spacing_extent_and_orientation_follow_from_the_affine() -> None:
    grid = Grid((256, 200, 31), LAS)
    assert grid.spacing_mm == (1.25, 1.25, 7.7)
    assert grid.orientation == "LAS"
    assert Grid((4, 5, 6), oblique()).spacing_mm == pytest.approx((0.8, 0.9, 3.0), rel=1e-14)


def test_an_oblique_or_sheared_grid_has_the_nearest_orientation() -> None:
    assert Grid((2, 2, 2), oblique(angles=(0, 0, 80))).orientation == "ALS"
    sheared = LAS.copy()
    sheared[1, 2] = 3.0
    assert Grid((2, 2, 2), sheared).orientation == "".join(nibabel.aff2axcodes(sheared)) == "LAS"


def test_to_mm_by_hand() -> None:
    grid = Grid((4, 4, 4), LAS)
    assert grid.to_mm((2, 4, 1)).tolist() == pytest.approx([97.5, -85.0, 12.7])
    assert grid.to_mm(np.zeros((3, 2, 3))).shape == (3, 2, 3)


def test_corners_are_the_outer_ones() -> None:
    corners = Grid((2, 1, 3), np.diag([1.0, 2.0, 3.0, 1.0])).corners_mm()
    assert corners.shape == (8, 3)
    assert corners.min(axis=0).tolist() == [-0.5, -1.0, -1.5]
    assert corners.max(axis=0).tolist() == [1.5, 1.0, 7.5]


def test_same_as_compares_the_corners_in_mm() -> None:
    grid = Grid((10, 10, 1), LAS)
    moved = LAS.copy()
    moved[0, 3] += 0.009
    assert grid.same_as(Grid(grid.shape, moved))
    assert not grid.same_as(Grid(grid.shape, moved), tolerance_mm=0.005)
    assert not grid.same_as(Grid((10, 10, 2), LAS))
    thicker = LAS.copy()
    thicker[2, 2] = 5.0  # a single slice: its centres are the same, its faces are not
    assert not grid.same_as(Grid(grid.shape, thicker))


def test_equality_is_exact_and_agrees_with_hash() -> None:
    negative_zero = LAS.copy()
    negative_zero[0, 1] = -0.0
    grid, twin = Grid((3, 4, 5), LAS), Grid((3, 4, 5), negative_zero)
    assert grid == twin
    assert hash(grid) == hash(twin)
    moved = LAS.copy()
    moved[0, 3] = math.nextafter(moved[0, 3], math.inf)
    assert grid != Grid((3, 4, 5), moved)
    assert grid != Grid((3, 4, 6), LAS)
    assert grid != "grid"


def test_the_affine_is_a_private_read_only_copy() -> None:
    affine = LAS.copy()
    grid = Grid((3, 4, 5), affine)
    affine[0, 0] = 99
    assert grid.affine[0, 0] == -1.25
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 99


@pytest.mark.parametrize("shape", [(3, 4), (3, 0, 5), (3, 4, 5.5), (1, 2, 3, 4)])
def test_a_wrong_shape_is_refused(shape) -> None:
    with pytest.raises(GeometryError, match="three positive sizes"):
        Grid(shape, LAS)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.full((4, 4), np.nan), "finite"),
        (np.eye(3), "4 x 4"),
        (np.zeros((4, 4)), "last row"),
        (np.diag([1, 1, 0, 1]), "singular"),
        (np.array([[1, 0, 0, 0], [0, 1, 0, 1e20], [0, 0, 1, 0], [0, 0, 0, 1]]), "far outside"),
        (np.diag([1, 1, 1e5, 1]), "far outside"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
    ],
)
def test_a_wrong_affine_is_refused(affine, message) -> None:
    with pytest.raises(GeometryError, match=message):
        Grid((3, 4, 5), affine)


def test_tiny_voxels_are_not_singular() -> None:
    assert Grid((3, 4, 5), np.diag([1e-4, 1e-4, 1e-4, 1])).spacing_mm == (1e-4, 1e-4, 1e-4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3), st.floats(0.01, 50))
def test_json_keeps_every_bit(origin, spacing) -> None:
    grid = Grid((3, 4, 5), oblique((spacing, 1 / 3, 0.1), origin=origin))
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


@pytest.mark.parametrize(
    "values", [{}, {"shape": [1, 2, 3]}, {"shape": None, "affine": []}, {"shape": "abc", "affine": 1}]
)
def test_a_damaged_stored_grid_is_refused(values) -> None:
    with pytest.raises(GeometryError, match="stored grid"):
        Grid.from_dict(values)


def test_describe_says_shape_spacing_orientation_and_origin() -> None:
    assert Grid((256, 256, 31), LAS).describe() == (
        "256 x 256 x 31 voxels of 1.25 x 1.25 x 7.7 mm, LAS, first voxel at (100.00, -90.00, 5.00) mm"
    )


def test_volume_and_mask_must_fit_their_grid() -> None:
    grid = Grid((3, 4, 5), LAS)
    assert Volume(np.zeros((2, 3, 4, 5), np.int16), grid).data.dtype == np.int16
    with pytest.raises(GeometryError, match="does not fit"):
        Volume(np.zeros((3, 4, 5)), grid)
    with pytest.raises(GeometryError, match="does not fit"):
        Mask(np.zeros((3, 4, 6), np.uint8), grid)
    with pytest.raises(GeometryError, match="integers"):
        Mask(np.zeros((3, 4, 5), np.float32), grid)
    labels = np.zeros((3, 4, 5), np.int16)
    labels[1, 2] = 7
    assert Mask(labels, grid).labels is labels
