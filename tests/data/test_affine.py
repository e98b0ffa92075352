from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from volseg.data import affine as affine_module
from volseg.data.affine import Motion, Triple, affine, rotation_matrix, source_matrix

ONE = (1.0, 1.0, 1.0)
NONE = (0.0, 0.0, 0.0)
MOTIONS = [
    Motion((1.1, 1.1, 1.1), (15.0, -12.0, 8.0)),
    Motion((0.8, 0.8, 0.8), (-3.0, 20.0, -17.0)),
    Motion((1.25, 0.9, 1.0), NONE),
]
IN_PLANE = [Motion((1.0, 1.2, 1.2), (15.0, 0.0, 0.0)), Motion((1.0, 0.75, 0.75), (-20.0, 0.0, 0.0))]


def batch(shape: tuple[int, int, int], samples: int = 1, channels: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((samples, channels, *shape), generator=generator)
    label = torch.randint(-1, 4, (samples, *shape), generator=generator).to(torch.int16)
    return image, label


def moved_label(label: Tensor, spacing_mm: Triple, motion: Motion) -> Tensor:
    image, moved = affine(label[None, None].float(), label[None], [motion], spacing_mm)
    assert (image.shape, image.dtype) == ((1, 1, *label.shape), torch.float32)
    assert moved.dtype == label.dtype
    return moved[0]


@pytest.mark.parametrize(
    ("degrees", "before", "after"),
    [
        ((90.0, 0.0, 0.0), (0, -2, 0), (0, 0, -2)),
        ((90.0, 0.0, 0.0), (1, 0, 3), (1, -3, 0)),
        ((0.0, 90.0, 0.0), (0, 1, 2), (2, 1, 0)),
        ((0.0, 90.0, 0.0), (2, 0, 0), (0, 0, -2)),
        ((0.0, 0.0, 90.0), (2, 0, 1), (0, 2, 1)),
        ((90.0, 90.0, 0.0), (0, 0, 2), (2, 0, 0)),  # about H to D, where it stays
        ((90.0, 90.0, 0.0), (2, 0, 0), (0, 2, 0)),  # about H to -W, then about D to H
        ((90.0, 0.0, 90.0), (0, 0, 2), (2, 0, 0)),  # about D to -H, then about W to D
        ((-90.0, 0.0, 0.0), (0, -2, 0), (0, 0, 2)),
    ],
)
def test_quarter_turns_by_hand(degrees: Triple, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    label = torch.zeros(9, 9, 9, dtype=torch.int8)
    label[tuple(4 + step for step in before)] = 3
    moved = moved_label(label, ONE, Motion(ONE, degrees))
    assert (moved.nonzero() - 4).tolist() == [list(after)]
    assert moved.sum() == 3


def test_the_image_turns_with_the_label() -> None:
    image = torch.zeros(1, 1, 3, 9, 9)
    image[0, 0, 1, 2, 4] = 1
    moved, label = affine(image, image[0].to(torch.int8), [Motion(ONE, (90.0, 0.0, 0.0))], (7.0, 1.0, 1.0))
    assert label[0].nonzero().tolist() == [[1, 4, 2]]
    assert moved[0, 0, 1, 4, 2] == pytest.approx(1.0, abs=1e-5)
    assert moved.sum() == pytest.approx(1.0, abs=1e-5)


def test_rotation_is_in_millimetres() -> None:
    """A quarter turn takes 2 voxels of 2 mm along H to 4 voxels of 1 mm along W, two voxels wide."""
    label = torch.zeros(1, 9, 18, dtype=torch.int8)
    label[0, 6, 8:10] = 1  # W has its centre between these
    moved = moved_label(label, (5.0, 2.0, 1.0), Motion(ONE, (90.0, 0.0, 0.0)))
    assert moved.nonzero().tolist() == [[0, 4, 12], [0, 4, 13]]
    thick = torch.zeros(5, 3, 17, dtype=torch.int8)
    thick[2, 1, 12] = 1  # 4 voxels of 1 mm along W are one of 4 mm along D, whose thickness covers 4 voxels of W
    depth, rows, columns = moved_label(thick, (4.0, 1.0, 1.0), Motion(ONE, (0.0, 90.0, 0.0))).nonzero().T
    assert (set(depth.tolist()), set(rows.tolist())) == ({3}, {1})
    assert len(columns) == 4
    assert abs(float(columns.float().mean()) - 8) <= 0.5


def test_a_smaller_line_by_hand() -> None:
    """Scaled by 0.8 about its centre; scaled by 0.5, what is beyond its ends is 0."""
    image = torch.tensor([3.0, 5.0, 9.0, 1.0]).view(1, 1, 1, 1, 4)
    label = torch.tensor([1, 2, -1, 4]).view(1, 1, 1, 4)
    half, half_label = affine(image, label, [Motion((1.0, 1.0, 0.5), NONE)], ONE)
    assert half.flatten().tolist() == [0, 4, 5, 0]
    assert half_label.flatten().tolist() == [0, 2, 4, 0]  # exactly between two voxels, it is the later one
    near, near_label = affine(image, label, [Motion((1.0, 1.0, 0.8), NONE)], ONE)
    assert near.flatten().tolist() == pytest.approx([3, 4.75, 8, 1])  # positions -0.375, 0.875, 2.125, 3.375
    assert near_label.flatten().tolist() == [1, 2, -1, 4]


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_scaling_scales_about_the_centre(scale: float) -> None:
    label = torch.zeros(1, 41, 41, dtype=torch.int8)
    label[:, 15:26, 15:26] = 1
    rows = moved_label(label, ONE, Motion((1.0, scale, scale), NONE))[0].any(1).nonzero().ravel()
    assert len(rows) == pytest.approx(11 * scale, abs=1.01)
    assert float(rows.float().mean()) == 20


def test_no_motion_is_the_identity() -> None:
    image, label = batch((5, 8, 7), samples=2, channels=2)
    for in_plane in (False, True):
        same, same_label = affine(image, label, [Motion(ONE, NONE)] * 2, (3.0, 1.0, 0.7), in_plane=in_plane)
        assert torch.equal(same, image)
        assert torch.equal(same_label, label)


def resampled_by_scipy(array: NDArray[Any], matrix: NDArray[Any], order: int) -> NDArray[Any]:
    center = (np.array(array.shape) - 1) / 2
    moved = ndimage.affine_transform(array, matrix, center - matrix @ center, order=order, mode="nearest")
    points = np.einsum("ij,jdhw->idhw", matrix, np.indices(array.shape) - center[:, None, None, None])
    inside = (np.abs(points) <= np.array(array.shape)[:, None, None, None] / 2).all(0)
    return np.where(inside, moved, 0)


@pytest.mark.parametrize("motion", [*MOTIONS, *IN_PLANE])
@pytest.mark.parametrize("spacing_mm", [ONE, (2.5, 0.8, 1.1)])
def test_it_resamples_as_scipy(motion: Motion, spacing_mm: Triple) -> None:
    image, label = batch((11, 21, 18))
    moved, moved_label = affine(image, label, [motion], spacing_mm)
    matrix = source_matrix(motion, spacing_mm)
    np.testing.assert_allclose(moved[0, 0], resampled_by_scipy(image[0, 0].double().numpy(), matrix, 1), atol=2e-5)
    np.testing.assert_array_equal(moved_label[0], resampled_by_scipy(label[0].numpy(), matrix, 0))


def test_rotations_are_scipy_s() -> None:
    from scipy.spatial.transform import Rotation

    for degrees in itertools.product((-20.0, 7.0), (13.0, 0.0), (-5.0, 18.0)):
        expected = Rotation.from_euler("yxz", [degrees[1], degrees[0], degrees[2]], degrees=True).as_matrix()
        np.testing.assert_allclose(rotation_matrix(degrees), expected, atol=1e-12)


@pytest.mark.parametrize(("motions", "in_plane"), [(MOTIONS, False), (IN_PLANE, True)])
def test_samples_of_a_batch_are_independent(motions: list[Motion], in_plane: bool) -> None:
    image, label = batch((6, 15, 12), samples=len(motions), channels=2)
    moved, moved_label = affine(image, label, motions, (2.0, 1.0, 1.3), in_plane=in_plane)
    for number, motion in enumerate(motions):
        part = slice(number, number + 1)
        one, one_label = affine(image[part], label[part], [motion], (2.0, 1.0, 1.3), in_plane=in_plane)
        assert torch.equal(one, moved[part])
        assert torch.equal(one_label, moved_label[part])


def test_in_plane_is_the_same_slice_by_slice() -> None:
    image, label = batch((6, 15, 12), samples=2, channels=2)
    whole, slices = (affine(image, label, IN_PLANE, (4.0, 1.0, 1.3), in_plane=in_plane) for in_plane in (False, True))
    torch.testing.assert_close(whole[0], slices[0], atol=1e-5, rtol=0)
    assert torch.equal(whole[1], slices[1])


@pytest.mark.parametrize("in_plane", [False, True])
def test_parts_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, in_plane: bool) -> None:
    image, label = batch((7, 15, 12), samples=2)
    whole = affine(image, label, IN_PLANE, ONE, in_plane=in_plane)
    monkeypatch.setattr(affine_module, "PART_VOXELS", {"cpu": 2 * 2 * 15 * 12})
    parts = affine(image, label, IN_PLANE, ONE, in_plane=in_plane)
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def test_any_layout_in_memory_is_taken() -> None:
    image, label = batch((6, 15, 12), samples=2, channels=3)
    expected = affine(image, label, MOTIONS[:2], ONE)
    last = image.to(memory_format=torch.channels_last_3d), label.flip(1).contiguous().flip(1)
    moved = affine(*last, MOTIONS[:2], ONE)
    assert torch.equal(moved[0], expected[0])
    assert torch.equal(moved[1], expected[1])


@pytest.mark.parametrize("in_plane", [False, True])
def test_threads_do_not_matter(in_plane: bool) -> None:
    """Patches are augmented by workers of one thread, or in the process of the training."""
    (image, label), threads, results = batch((33, 53, 41)), torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        results.append(affine(image, label, IN_PLANE[:1], (2.0, 1.0, 1.3), in_plane=in_plane))
    torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
