from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made.prepared_cases import MadeCase, made_plan, numbered_case
from volseg.data.patches import class_rows, cut, patch_start, sample_patch
from volseg.geometry.ops import pad_to_size


def brute_force(array: np.ndarray, start: tuple, size: tuple, halo: int) -> np.ndarray:
    """The definition: pad the whole volume, replicate its end slices, cut."""
    padded, _ = pad_to_size(array, size)
    padded = np.pad(padded, [(0, 0)] * (array.ndim - 3) + [(halo, halo), (0, 0), (0, 0)], mode="edge")
    d, h, w = start
    return padded[..., d : d + size[0] + 2 * halo, h : h + size[1], w : w + size[2]]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 2))
def test_cut_agrees_with_its_definition(data: st.DataObject, halo: int) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    size = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    start = tuple(data.draw(st.integers(0, max(n - s, 0))) for n, s in zip(shape, size, strict=True))
    array = np.arange(1, 2 * np.prod(shape) + 1, dtype=np.float32).reshape(2, *shape)
    result = cut(array, start, size, halo)
    np.testing.assert_array_equal(result, brute_force(array, start, size, halo))
    assert result.base is None or not np.shares_memory(result, array)


def test_neighbour_slices_come_from_the_volume_and_repeat_at_its_ends() -> None:
    slices = np.arange(10, 16, dtype=np.float32)[None, :, None, None] * np.ones((1, 6, 4, 4), dtype=np.float32)
    assert cut(slices, (2, 0, 0), (2, 4, 4), 1)[0, :, 0, 0].tolist() == [11, 12, 13, 14]
    assert cut(slices, (0, 0, 0), (2, 4, 4), 1)[0, :, 0, 0].tolist() == [10, 10, 11, 12]
    assert cut(slices, (4, 0, 0), (2, 4, 4), 1)[0, :, 0, 0].tolist() == [13, 14, 15, 15]
    assert cut(slices, (0, 0, 0), (8, 4, 4), 1)[0, :, 0, 0].tolist() == [0, 0, 10, 11, 12, 13, 14, 15, 0, 0]


def test_a_foreground_patch_is_centred_on_its_voxel() -> None:
    rng = np.random.default_rng(0)
    assert patch_start((20, 40, 40), (4, 8, 8), rng, (10, 20, 21)) == (8, 16, 17)
    assert patch_start((20, 40, 40), (4, 8, 8), rng, (0, 39, 3)) == (0, 32, 0)
    assert patch_start((2, 5, 40), (4, 8, 8), rng, (1, 4, 20)) == (0, 0, 16)


def test_uniform_patches_reach_every_position() -> None:
    rng = np.random.default_rng(0)
    starts = np.array([patch_start((5, 9, 2), (4, 6, 8), rng, None) for _ in range(400)])
    counts = np.unique(starts, axis=0, return_counts=True)
    assert len(counts[0]) == 2 * 4 * 1
    assert counts[1].min() > 25


@pytest.mark.parametrize("shape", [(6, 12, 10), (3, 5, 10), (1, 8, 8)])
@pytest.mark.parametrize("halo", [0, 1])
def test_image_and_label_are_cut_alike(shape: tuple, halo: int) -> None:
    case = numbered_case(shape)
    lookup = np.concatenate([[0], case.label.ravel()])  # voxel number -> label; padding is background
    rng = np.random.default_rng(0)
    for _ in range(20):
        image, label = sample_patch(case, made_plan(), rng, 0.5, halo)
        assert image.shape == (1, 4 + 2 * halo, 8, 8)
        assert label.shape == image.shape[1:]
        np.testing.assert_array_equal(lookup[image[0].astype(int)], label)


def test_rare_classes_are_met_as_often_as_common_ones() -> None:
    case = numbered_case((12, 32, 32))  # one voxel of class 2, in a corner
    rng = np.random.default_rng(0)
    met = [(sample_patch(case, made_plan(), rng, 1.0)[1] == 2).any() for _ in range(200)]
    assert 0.35 < np.mean(met) < 0.65
    never = [(sample_patch(case, made_plan(), rng, 0.0)[1] == 2).any() for _ in range(100)]
    assert np.mean(never) < 0.1


def test_a_case_without_foreground_is_cut_anywhere() -> None:
    case = MadeCase("empty", np.zeros((1, 6, 12, 10), dtype=np.float32), np.zeros((6, 12, 10), dtype=np.int8))
    image, label = sample_patch(case, made_plan(), np.random.default_rng(0), 1.0)
    assert image.shape == (1, 4, 8, 8)
    assert not label.any()


def test_the_rows_of_each_class_are_found() -> None:
    classes = np.array([1, 1, 1, 4, 7, 7], dtype=np.int32)
    table = np.column_stack([classes, np.zeros((6, 3), dtype=np.int32)])
    assert class_rows(table) == [range(0, 3), range(3, 4), range(4, 6)]
    assert class_rows(table[:0]) == []
