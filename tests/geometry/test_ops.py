from __future__ import annotations

import nibabel
import numpy as np
import pytest

from tests.made.affines import CODES, affine_of, positions
from volseg.errors import GeometryError
from volseg.geometry import ops
from volseg.geometry.grid import Grid

OBLIQUE = Grid((5, 4, 3), affine_of("LIP", (0.7, 1.5, 4.0), (14, -9, 23)))


@pytest.mark.parametrize("codes", CODES)
def test_reorient_moves_every_voxel_with_its_place(codes) -> None:
    for grid in (OBLIQUE, Grid((5, 1, 3), affine_of(codes, (2.0, 1.0, 0.5)))):
        for wanted in (codes, "SPL", "RAS"):
            data, turned = ops.reorient(positions(grid), grid, wanted)
            assert turned.orientation == wanted
            assert data.shape[1:] == turned.shape
            np.testing.assert_allclose(data, positions(turned), atol=1e-12)


@pytest.mark.parametrize("codes", CODES)
def test_reorient_agrees_with_nibabel(codes) -> None:
    data = np.arange(60).reshape(5, 4, 3)
    wanted = nibabel.orientations.axcodes2ornt(codes)
    change = nibabel.orientations.ornt_transform(nibabel.io_orientation(OBLIQUE.affine), wanted)
    expected = nibabel.Nifti1Image(data.astype(np.int16), OBLIQUE.affine).as_reoriented(change)
    ours, grid = ops.reorient(data[None], OBLIQUE, codes)
    np.testing.assert_array_equal(ours[0], expected.dataobj)
    np.testing.assert_allclose(grid.affine, expected.affine, atol=1e-12)


@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (25, -20, 30), (40, 35, -50), (45, 0, 0), (0, -45, 0), (0, 0, 45), (45, 45, 0)]
)
@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_the_order_of_the_voxel_axes_does_not_decide_how_a_scan_is_turned(angles, shear) -> None:
    """Also where two directions are equally near: the affine of a file is rounded to float32, anew in each order."""
    affine = affine_of("RAS", (0.7, 1.2, 3.1), angles)
    affine[:3, 2] += shear * affine[:3, 1]
    data = np.arange(60).reshape(5, 4, 3)
    expected, _ = ops.reorient(data, Grid(data.shape, affine.astype(np.float32)), "SPL")
    for codes in CODES:
        change = nibabel.orientations.axcodes2ornt(codes)
        turned = nibabel.orientations.apply_orientation(data, change)
        moved = (affine @ nibabel.orientations.inv_ornt_aff(change, data.shape)).astype(np.float32)
        np.testing.assert_array_equal(ops.reorient(turned, Grid(turned.shape, moved), "SPL")[0], expected)


@pytest.mark.parametrize("codes", ["", "RA", "RAX", "RLS", "ras", "RRAS", "RAAS"])
def test_reorient_refuses_what_is_no_orientation(codes) -> None:
    with pytest.raises(GeometryError, match="orientation"):
        ops.reorient(positions(OBLIQUE), OBLIQUE, codes)


@pytest.mark.parametrize("codes", CODES)
def test_voxels_in_another_order_come_into_that_of_a_grid(codes) -> None:
    data, grid = ops.reorient(positions(OBLIQUE), OBLIQUE, codes)
    ordered, found = ops.in_order_of(data, grid, OBLIQUE)
    np.testing.assert_allclose(ordered, positions(OBLIQUE), atol=1e-12)
    assert found.same_as(OBLIQUE)


def test_voxels_of_another_grid_are_left_as_they_are() -> None:
    """Moved by half a voxel, or with another spacing, in the same and in another order."""
    for shift, scale in ((0.35, 1.0), (0.0, 1.1)):
        affine = OBLIQUE.affine @ np.diag([scale, 1, 1, 1])
        affine[0, 3] += shift
        for codes in ("LIP", "RAS"):
            data, grid = ops.reorient(positions(OBLIQUE), Grid(OBLIQUE.shape, affine), codes)
            same, found = ops.in_order_of(data, grid, OBLIQUE)
            assert same is data
            assert found is grid


def test_crop_keeps_every_voxel_in_its_place() -> None:
    data, cropped = ops.crop(positions(OBLIQUE), OBLIQUE, (1, 0, 2), (4, 4, 3))
    assert cropped.shape == data.shape[1:] == (3, 4, 1)
    np.testing.assert_allclose(data, positions(cropped), atol=1e-12)


@pytest.mark.parametrize(("start", "stop"), [((0, 0, 0), (6, 4, 3)), ((-1, 0, 0), (2, 2, 2)), ((2, 0, 0), (2, 1, 1))])
def test_crop_refuses_a_box_outside_or_empty(start, stop) -> None:
    with pytest.raises(GeometryError, match="crop"):
        ops.crop(positions(OBLIQUE), OBLIQUE, start, stop)


def test_pad_to_size_is_symmetric_and_leaves_large_axes_alone() -> None:
    data = np.ones((2, 3, 4, 5), np.int16)
    padded, before = ops.pad_to_size(data, (6, 4, 8), value=7)
    assert before == (1, 0, 1)
    assert padded.shape == (2, 6, 4, 8)
    assert padded.dtype == np.int16
    np.testing.assert_array_equal(padded[:, 1:4, :, 1:6], data)
    assert (padded == 7).sum() == padded.size - data.size
    labels, before = ops.pad_to_size(data[0], (1, 9, 1))
    assert labels.shape == (3, 9, 5)
    assert before == (0, 2, 0)


def test_pad_to_size_returns_what_is_large_enough_itself() -> None:
    data = np.ones((1, 3, 4, 5))
    padded, before = ops.pad_to_size(data, (3, 2, 1))
    assert padded is data
    assert before == (0, 0, 0)
