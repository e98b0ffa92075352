from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made.affines import CODES, affine_of, positions
from tests.made.traces import resample, restore_labels, uncrop
from volseg.errors import GeometryError
from volseg.geometry.grid import Grid
from volseg.geometry.trace import AxisMap, Step, Trace
from volseg.io.volumes import read_mask

ANGLES = ((0.0, 0.0, 0.0), (14.0, -9.0, 23.0))


def random_labels(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, shape).astype(np.uint8)


def preprocess(grid: Grid, codes="SPL", start=(0, 0, 0), stop=None, spacing=None):
    """Positions of the working voxels and the trace, as preprocessing makes it."""
    data, trace = Trace(grid).reorient(positions(grid), codes)
    data, trace = trace.crop(data, start, trace.target.shape if stop is None else stop)
    return resample(trace, data, spacing or trace.target.spacing_mm)


@pytest.mark.parametrize("angles", ANGLES)
@pytest.mark.parametrize("codes", CODES)
def test_labels_come_back_from_all_48_orientations(codes, angles) -> None:
    grid = Grid((5, 4, 7), affine_of(codes, (0.7, 1.5, 4.0), angles))
    labels = random_labels(grid.shape)
    _, trace = preprocess(grid)
    assert trace.target.orientation == "SPL"
    np.testing.assert_array_equal(restore_labels(trace, trace.replay_labels(labels)), labels)


@pytest.mark.parametrize("angles", ANGLES)
@pytest.mark.parametrize("codes", CODES)
def test_upsampled_labels_come_back_from_all_48_orientations(codes, angles) -> None:
    grid = Grid((5, 1, 7), affine_of(codes, (0.8, 1.5, 4.0), angles))
    labels = random_labels(grid.shape)
    _, trace = preprocess(grid, spacing=(0.4, 0.4, 0.4))
    assert trace.target.spacing_mm == pytest.approx((0.4, 0.4, 0.4), rel=1e-12)
    np.testing.assert_array_equal(restore_labels(trace, trace.replay_labels(labels)), labels)


def test_what_was_cropped_away_gets_the_fill_value() -> None:
    grid = Grid((5, 6, 7), affine_of("LAS", (1.0, 1.0, 2.0)))
    labels = random_labels(grid.shape) + 1
    _, trace = preprocess(grid, start=(1, 2, 0), stop=(6, 5, 3))  # in S, P, L: of 7, 6, 5 voxels
    restored = restore_labels(trace, trace.replay_labels(labels), fill=9)
    kept = np.zeros(grid.shape, bool)
    kept[0:3, 1:4, 1:6] = True  # L kept its direction; A = 5 - P
    np.testing.assert_array_equal(restored, np.where(kept, labels, 9))
    assert restored.dtype == np.uint8


@pytest.mark.parametrize("angles", [(0, 0, 45), (45, 0, 0), (0, 0, 90), (45, 45, 45)])
def test_undecided_orientations_are_undone_too(angles) -> None:
    grid = Grid((3, 4, 5), affine_of("RAS", (1.0, 1.0, 1.0), angles))
    labels = random_labels(grid.shape)
    _, trace = preprocess(grid)
    np.testing.assert_array_equal(restore_labels(trace, trace.replay_labels(labels)), labels)


spacings = st.tuples(*[st.floats(0.3, 6)] * 3)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CODES), spacings, spacings, st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 99))
def test_axis_maps_point_at_the_same_place(codes, spacing, working_spacing, shape, seed) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid(shape, affine_of(codes, spacing, (5, -7, 9)))
    reoriented = Trace(grid).reorient(positions(grid), "AIL")[1].target.shape
    start = [int(rng.integers(n)) for n in reoriented]
    stop = [int(rng.integers(a, n)) + 1 for a, n in zip(start, reoriented, strict=True)]
    data, trace = preprocess(grid, "AIL", start, stop, working_spacing)
    assert data.shape[1:] == trace.target.shape
    index = rng.uniform(0, trace.cropped.shape)
    mapped = [m.scale * i + m.offset for m, i in zip(trace.axis_maps(), index, strict=True)]
    np.testing.assert_allclose(trace.target.to_mm(mapped), trace.cropped.to_mm(index), atol=1e-9)
    labels = random_labels(shape)
    working = trace.replay_labels(labels)
    assert working.shape == trace.target.shape
    restored = restore_labels(trace, working)
    assert restored.shape == shape
    assert set(np.unique(restored)) <= set(np.unique(labels)) | {0}


def test_axis_maps_by_hand() -> None:
    grid = Grid((4, 4, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
    _, trace = preprocess(grid, "RAS", spacing=(0.5, 2.0, 6.0))
    # d: half the spacing, 8 voxels, the first centre a quarter of a voxel further out; w: twice the spacing.
    assert trace.axis_maps() == (AxisMap(2.0, 0.5), AxisMap(1.0, 0.0), AxisMap(0.5, -0.25))


def test_nearest_restoring_takes_the_voxel_that_contains_the_centre() -> None:
    grid = Grid((6, 1, 1), np.eye(4))
    _, trace = preprocess(grid, "RAS", spacing=(2.0, 1.0, 1.0))
    working = np.array([3, 1, 2], np.uint8).reshape(3, 1, 1)
    assert restore_labels(trace, working).ravel().tolist() == [3, 3, 1, 1, 2, 2]


def test_the_way_back_from_the_cropped_grid_interpolates_nothing() -> None:
    grid = Grid((5, 6, 7), affine_of("PIR", (1.0, 1.0, 2.0)))
    labels = random_labels(grid.shape)
    _, trace = preprocess(grid, start=(0, 0, 1), stop=(6, 5, 7), spacing=(0.7, 1.3, 1.9))
    moved_only = Trace(grid, trace.steps[:-1])
    assert trace.cropped == moved_only.target
    restored = uncrop(trace, moved_only.replay_labels(labels))
    expected = labels.copy()
    expected[:, :, 6] = 0  # the first voxel towards L is the last towards R
    np.testing.assert_array_equal(restored, expected)
    assert restored.flags.c_contiguous


def test_json_keeps_every_bit() -> None:
    grid = Grid((5, 6, 7), affine_of("PIR", (1 / 3, 0.1, 2.0), (14, -9, 23)))
    _, trace = preprocess(grid, start=(0, 0, 1), stop=(6, 5, 7), spacing=(0.7, 1.3, 1.9))
    again = Trace.from_dict(json.loads(json.dumps(trace.to_dict())))
    assert again == trace
    working = random_labels(trace.target.shape)
    np.testing.assert_array_equal(restore_labels(again, working), restore_labels(trace, working))


def test_an_empty_trace_and_the_same_spacing_do_nothing() -> None:
    grid = Grid((2, 3, 4), affine_of("RAS"))
    labels = random_labels(grid.shape)
    trace = Trace(grid)
    assert trace.target is grid
    assert trace.cropped is grid
    np.testing.assert_array_equal(restore_labels(trace, trace.replay_labels(labels)), labels)
    data = np.ones((1, 2, 3, 4), np.int16)
    same, unchanged = resample(trace, data, (1.0, 1.0, 1.0))
    assert same is data
    assert unchanged == trace


def test_labels_of_another_shape_are_refused() -> None:
    _, trace = preprocess(Grid((2, 3, 4), affine_of("RAS")))
    with pytest.raises(GeometryError, match="do not fit"):
        trace.replay_labels(np.zeros((9, 9, 9), np.uint8))


def test_steps_must_connect_and_end_with_the_resampling() -> None:
    grid = Grid((4, 4, 4), affine_of("RAS"))
    data, trace = preprocess(grid, "RAS", spacing=(2.0, 2.0, 2.0))
    with pytest.raises(GeometryError, match="ends with its resampling"):
        trace.crop(data, (0, 0, 0), (1, 1, 1))
    with pytest.raises(GeometryError, match="does not start"):
        Trace(grid, (Step("crop", trace.target, trace.target),))


@pytest.mark.parametrize("damage", ["steps", "kind", "source"])
def test_a_damaged_stored_trace_is_refused(damage) -> None:
    values = preprocess(Grid((4, 4, 4), affine_of("RAS")), spacing=(2, 2, 2))[1].to_dict()
    if damage == "kind":
        values["steps"][0]["kind"] = "shear"
    else:
        values[damage] = None
    with pytest.raises(GeometryError, match="trace"):
        Trace.from_dict(values)


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "codes", "spacing"),
    [
        ("CHAOS_MR/labelsTr/chaos_01.nii.gz", "SPL", (7.7, 1.25, 1.25)),
        ("CHAOS_MR/labelsTr/chaos_02.nii.gz", "SPL", (6.0, 1.5, 1.5)),
        ("Task04_Hippocampus/labelsTr/hippocampus_001.nii.gz", "AIL", (0.8, 1.1, 1.3)),
    ],
)
def test_real_labels_come_back(data_root, file, codes, spacing) -> None:
    mask = read_mask(data_root / file)
    inside = np.argwhere(Trace(mask.grid).reorient(mask.labels, codes)[0] > 0)
    _, trace = preprocess(mask.grid, codes, inside.min(axis=0), inside.max(axis=0) + 1, spacing)
    restored = restore_labels(trace, trace.replay_labels(mask.labels))
    for value in np.unique(mask.labels):
        ours, theirs = restored == value, mask.labels == value
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.9
    if trace.cropped == trace.target:
        np.testing.assert_array_equal(restored, mask.labels)


@pytest.mark.parametrize("rounding", [-1e-7, 0.0, 1e-7])
def test_restoring_labels_sends_halves_up_however_rounded(rounding) -> None:
    """Every second voxel of 1023 lies halfway between two of the 512 on the working grid."""
    trace = Trace(Grid((1023, 1, 1), np.diag([1.0 + rounding, 1, 1, 1])))
    _, trace = resample(trace, np.zeros((1, 1023, 1, 1)), (2.0, 1.0, 1.0))
    restored = restore_labels(trace, np.arange(512).reshape(512, 1, 1))
    np.testing.assert_array_equal(restored.ravel(), (np.arange(1023) + 1) // 2)
