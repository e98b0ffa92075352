from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made.affines import affine_of, positions
from tests.made.traces import resample_image
from volseg.errors import GeometryError
from volseg.geometry import interpolate, ops, resample
from volseg.geometry.grid import Grid
from volseg.geometry.interpolate import interpolation_matrix

KINDS = ("linear", "cubic", "nearest")


def unit_grid(*shape: int) -> Grid:
    return Grid(shape, np.eye(4))


def along(axis: int, values: np.ndarray) -> np.ndarray:
    """A line of values as an image ``(1, D, H, W)`` along one axis."""
    shape = [1, 1, 1, 1]
    shape[axis + 1] = len(values)
    return values.reshape(shape)


# --- the matrices ---


def test_linear_upsampling_by_hand() -> None:
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(interpolation_matrix(2, 4, 0.5), expected)


def test_linear_downsampling_by_hand() -> None:
    # Factor 2, antialiased: a triangle of half-width 2 samples, at distances 1.5, 0.5, 0.5, 1.5.
    row = interpolation_matrix(6, 3, 2.0)[1]
    np.testing.assert_allclose(row, [0, 0.125, 0.375, 0.375, 0.125, 0])
    np.testing.assert_allclose(interpolation_matrix(6, 3, 2.0, antialias=False)[1], [0, 0, 0.5, 0.5, 0, 0])


def test_cubic_halfway_has_the_weights_of_keys() -> None:
    row = interpolation_matrix(8, 7, 1.0, "cubic")[3]  # shifted by half a sample
    np.testing.assert_allclose(row, [0, 0, -1 / 16, 9 / 16, 9 / 16, -1 / 16, 0, 0], atol=1e-15)


def test_nearest_sends_halves_up() -> None:
    assert interpolation_matrix(4, 2, 2.0, "nearest").argmax(axis=1).tolist() == [1, 3]
    assert interpolation_matrix(2, 6, 1 / 3, "nearest").argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1]


sizes = st.integers(1, 40)
scales = st.floats(0.05, 20)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, scales, st.sampled_from(KINDS), st.booleans())
def test_rows_sum_to_one(n_in, n_out, scale, kind, antialias) -> None:
    matrix = interpolation_matrix(n_in, n_out, scale, kind, antialias)
    assert matrix.shape == (n_out, n_in)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, scales, st.sampled_from(("linear", "cubic")), st.booleans())
def test_mirroring_the_input_mirrors_the_output(n_in, n_out, scale, kind, antialias) -> None:
    matrix = interpolation_matrix(n_in, n_out, scale, kind, antialias)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-9)


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 13), (13, 5), (7, 7), (1, 4), (9, 1)])
def test_linear_agrees_with_scipy(n_in, n_out) -> None:
    values = np.random.default_rng(0).normal(size=n_in)
    expected = scipy.ndimage.zoom(values, n_out / n_in, order=1, mode="nearest", grid_mode=True)
    ours = interpolation_matrix(n_in, n_out, n_in / n_out, antialias=False) @ values
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_cubic_reproduces_a_parabola() -> None:
    values = (np.arange(12.0) - 4) ** 2
    at = 5.5 + (np.arange(25) - 12) * 0.4
    inside = (at > 1) & (at < 10)
    ours = interpolation_matrix(12, 25, 0.4, "cubic") @ values
    np.testing.assert_allclose(ours[inside], (at[inside] - 4) ** 2, atol=1e-12)


# --- the grid ---


def test_resampled_grid_keeps_the_field_of_view() -> None:
    grid = Grid((35, 51, 10), affine_of("LAS", (1.0, 0.8, 5.0), (10, 20, -15)))
    target = ops.resampled_grid(grid, (2.0, 1.0, 1.5))
    assert target.shape == (18, 41, 33)  # 35 / 2 = 17.5, 40.8 / 1 = 40.8, 50 / 1.5 = 33.3
    assert target.spacing_mm == pytest.approx((2.0, 1.0, 1.5), rel=1e-14)
    centres = [g.to_mm((np.array(g.shape) - 1) / 2) for g in (grid, target)]
    np.testing.assert_allclose(*centres, atol=1e-12)
    assert target.orientation == grid.orientation


# What float32 leaves uncertain in the affine of a file, the more so an oblique one, decides nothing.
ROUNDING = pytest.mark.parametrize("rounding", [-1e-7, 0.0, 1e-7])


@ROUNDING
def test_half_a_voxel_more_is_a_voxel_more_however_rounded(rounding) -> None:
    grid = Grid((34, 8, 1000), np.diag([1.2 * (1 + rounding), 1.2, 1.2 * (1 - rounding), 1]))
    assert ops.resampled_grid(grid, (1.6, 1.6, 0.96)).shape == (26, 6, 1250)  # 25.5, 6 and 1250
    assert ops.resampled_grid(Grid((333, 1, 1), grid.affine), (0.8, 1.6, 1.6)).shape == (500, 1, 1)  # 499.5


@ROUNDING
def test_slices_of_three_times_the_finest_spacing_are_cubic_however_rounded(rounding) -> None:
    image = np.random.default_rng(0).standard_normal((1, 9, 8, 8))
    resampled, expected = (
        resample_image(image, Grid((9, 8, 8), np.diag([depth_mm, 1, 1, 1])), (2.0, 1.0, 1.0))[0]
        for depth_mm in (3.0 * (1 + rounding), 3.0)
    )
    np.testing.assert_allclose(resampled, expected, atol=1e-5)


@ROUNDING
def test_nearest_sends_halves_up_however_rounded(rounding) -> None:
    matrix = interpolation_matrix(1023, 2045, 0.5 * (1 + rounding), "nearest")
    np.testing.assert_array_equal(matrix.argmax(axis=1), (np.arange(2045) + 1) // 2)


def test_resampled_grid_has_at_least_one_voxel() -> None:
    assert ops.resampled_grid(unit_grid(3, 1, 2), (10, 10, 10)).shape == (1, 1, 1)


def test_the_same_spacing_changes_nothing() -> None:
    grid = Grid((5, 6, 7), affine_of("RAS", (1.2500001, 1.25, 7.7), (3, 4, 5)))
    data = np.ones((1, 5, 6, 7), np.int16)
    resampled, target = resample_image(data, grid, (1.25, 1.25, 7.7))
    assert resampled is data
    assert target is grid
    labels, target = ops.resample_labels(data[0], grid, (1.25, 1.25, 7.7))
    assert target is grid
    assert labels.base is data


def test_an_axis_that_keeps_its_spacing_keeps_its_values() -> None:
    data = np.random.default_rng(0).normal(size=(1, 6, 7, 8)).astype(np.float32)
    grid = unit_grid(6, 7, 8)
    resampled, target = resample_image(data, grid, (1, 1, 2))
    assert target.shape == (6, 7, 4)
    for d, h in ((0, 0), (5, 6), (2, 3)):
        alone, _ = resample_image(data[:, d : d + 1, h : h + 1], unit_grid(1, 1, 8), (1, 1, 2))
        np.testing.assert_allclose(resampled[0, d, h], alone[0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, np.nan, 1), (np.inf, 1, 1)])
def test_a_wrong_spacing_is_refused(spacing) -> None:
    with pytest.raises(GeometryError, match="spacing"):
        ops.resampled_grid(unit_grid(3, 3, 3), spacing)


# --- images ---


@pytest.mark.parametrize("spacing", [(0.5, 0.7, 1.0), (1.7, 2.2, 2.0), (0.9, 3.1, 0.4)])
@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_a_ramp_in_mm_stays_what_it_is(codes, spacing) -> None:
    grid = Grid((24, 21, 20), affine_of(codes, (1.0, 1.1, 0.9), (20, -13, 8)))
    data, target = resample_image(positions(grid), grid, spacing)
    assert data.dtype == np.float32
    margin = [int(np.ceil(2 * max(1, old / new))) + 1 for old, new in zip(grid.spacing_mm, spacing, strict=True)]
    inner = (slice(None), *(slice(m, -m) for m in margin))
    assert data[inner].size > 0
    np.testing.assert_allclose(data[inner], positions(target)[inner], atol=2e-5)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.tuples(*[st.floats(0.3, 4)] * 3), st.floats(-1000, 1000))
def test_a_constant_stays_what_it_is(shape, spacing, value) -> None:
    data, grid = resample_image(np.full((2, *shape), value), unit_grid(*shape), spacing)
    assert data.shape == (2, *grid.shape)
    np.testing.assert_allclose(data, value, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("frequency", "factor"), [(0.5, 2.0), (0.5, 2.5), (0.4, 3.0), (0.3, 4.0), (0.45, 5.0)])
def test_downsampling_does_not_alias(axis, frequency, factor) -> None:
    """Above the new Nyquist frequency nothing may be left; sampling alone would leave it in full."""
    wave = np.cos(2 * np.pi * frequency * np.arange(120) + 0.3)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = factor
    data = along(axis, wave)
    resampled, _ = resample_image(data, unit_grid(*data.shape[1:]), spacing)
    inner = resampled.ravel()[4:-4]
    assert np.abs(inner).max() < 0.05
    sampled = interpolation_matrix(120, resampled.size, factor, "cubic", antialias=False) @ wave
    assert np.abs(sampled[4:-4]).max() > 0.05 or frequency == 0.5


def test_a_thick_axis_is_linear_and_does_not_ring() -> None:
    step = (np.arange(10) > 4).astype(np.float32)
    thick = Grid((10, 1, 1), np.diag([5.0, 1.0, 1.0, 1.0]))
    data, _ = resample_image(along(0, step), thick, (1.0, 1.0, 1.0))
    assert data.min() == 0
    assert data.max() == 1
    assert 0.4 < data.ravel()[25] < 0.7
    thin, _ = resample_image(along(0, step), unit_grid(10, 1, 1), (0.2, 1.0, 1.0))
    assert thin.max() > 1.01  # cubic, elsewhere, is sharper and overshoots


def test_slabs_do_not_change_the_result(monkeypatch) -> None:
    data = np.random.default_rng(0).integers(-1000, 1000, (2, 9, 8, 7)).astype(np.int16)
    grid = unit_grid(9, 8, 7)
    whole, _ = resample_image(data, grid, (0.7, 1.3, 2.0))
    monkeypatch.setattr(interpolate, "SLAB_VOXELS", 60)
    slabs, _ = resample_image(data, grid, (0.7, 1.3, 2.0))
    np.testing.assert_allclose(slabs, whole, atol=1e-3)
    brute = data.astype(np.float64)
    for axis, scale in enumerate((0.7, 1.3, 2.0)):
        n_in, n_out = data.shape[axis + 1], whole.shape[axis + 1]
        matrix = interpolation_matrix(n_in, n_out, scale, "cubic")
        brute = np.moveaxis(np.tensordot(matrix, brute, (1, axis + 1)), 0, axis + 1)
    np.testing.assert_allclose(whole, brute, atol=1e-3)


def test_a_single_slice_is_resampled_in_plane() -> None:
    grid = Grid((1, 8, 8), np.diag([5.0, 1.0, 1.0, 1.0]))
    data, target = resample_image(np.random.default_rng(0).normal(size=(1, 1, 8, 8)), grid, (5.0, 2.0, 2.0))
    assert data.shape == (1, 1, 4, 4)
    assert target.spacing_mm == (5.0, 2.0, 2.0)


# --- labels ---


def brute_labels(labels: np.ndarray, grid: Grid, spacing) -> np.ndarray:
    """All indicators at once in float64; ties to the lower value."""
    values = np.unique(labels)
    shape = ops.resampled_grid(grid, spacing).shape
    shares = []
    for value in values:
        share = (labels == value).astype(np.float64)
        for axis in range(3):
            matrix = interpolation_matrix(grid.shape[axis], shape[axis], spacing[axis] / grid.spacing_mm[axis])
            share = np.moveaxis(np.tensordot(matrix, share, (1, axis)), 0, axis)
        shares.append(share)
    return values[np.argmax(np.round(shares, 6), axis=0)]


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.sampled_from((0.5, 0.7, 1.0, 1.3, 2.0, 3.0))] * 3),
    st.integers(1, 5),
    st.integers(0, 1000),
)
def test_labels_agree_with_brute_force(shape, spacing, count, seed) -> None:
    values = np.array([-3, 0, 2, 7, 200], np.int16)[:count]
    labels = np.random.default_rng(seed).choice(values, shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "BLOCK", 4)
        ours, target = ops.resample_labels(labels, unit_grid(*shape), spacing)
    assert ours.shape == target.shape
    assert ours.dtype == np.int16
    assert set(np.unique(ours)) <= set(np.unique(labels))
    np.testing.assert_array_equal(ours, brute_labels(labels, unit_grid(*shape), spacing))


def test_label_ties_go_to_the_lower_value() -> None:
    for pair in ((0, 1), (1, 0), (7, 3), (3, 7)):
        labels = np.array(pair, np.uint8).reshape(2, 1, 1)
        ours, _ = ops.resample_labels(labels, unit_grid(2, 1, 1), (2.0, 1.0, 1.0))
        assert ours.ravel().tolist() == [min(pair)]


def test_neighbouring_labels_do_not_mix_to_one_between() -> None:
    labels = np.repeat(np.array([1, 3], np.uint8), 4).reshape(8, 1, 1)
    ours, _ = ops.resample_labels(labels, unit_grid(8, 1, 1), (0.3, 1.0, 1.0))
    assert set(ours.ravel()) == {1, 3}
    assert (np.diff(ours.ravel().astype(int)) >= 0).all()


def test_labels_keep_type_rank_and_large_values() -> None:
    labels = np.zeros((1, 4, 4, 4), np.int64)
    labels[0, :2] = 5_000_000_000
    ours, target = ops.resample_labels(labels, unit_grid(4, 4, 4), (0.5, 0.5, 0.5))
    assert ours.dtype == np.int64
    assert ours.shape == (1, *target.shape) == (1, 8, 8, 8)
    assert (ours[0, :4] == 5_000_000_000).all()
    assert (ours[0, 4:] == 0).all()


def test_labels_with_channels_are_refused() -> None:
    with pytest.raises(GeometryError, match="one channel"):
        ops.resample_labels(np.zeros((2, 4, 4, 4), np.uint8), unit_grid(4, 4, 4), (2, 2, 2))


REAL = [
    ((30, 512, 512), (10.0, 0.4, 0.4), (0.8, 0.8, 0.8)),
    ((30, 512, 512), (10.0, 0.4, 0.4), (0.4, 0.4, 0.4)),
    ((20, 256, 256), (7.0, 0.9, 0.9), (0.9, 0.9, 0.9)),
    ((150, 150, 150), (4.0, 4.0, 4.0), (1.0, 1.0, 1.0)),
    ((600, 512, 512), (0.5, 0.4, 0.4), (5.0, 1.5, 1.5)),
    ((1, 512, 512), (10.0, 0.4, 0.4), (0.8, 0.8, 0.8)),
    ((1, 64, 64), (200.0, 1.0, 1.0), (1.0, 1.0, 1.0)),  # one slice of a wrong thickness costs little
]
WRONG = [
    ((1, 512, 512), (200.0, 1.0, 1.0), (1.0, 1.0, 1.0), "262144 voxels of 200 x 1 x 1 mm, which would become 5.243e"),
    ((64, 64, 64), (1000.0, 1.0, 1.0), (1.0, 1.0, 1.0), "262144 voxels of 1000 x 1 x 1 mm, which would become 2.621e"),
    ((300, 512, 512), (1000.0, 0.7, 0.7), (2.0, 2.0, 2.0), "78643200 voxels"),
    ((64, 64, 64), (1.0, 1.0, 1e-6), (1.0, 1.0, 1.0), "would become 4096 of 1 x 1 x 1 mm"),
    ((64, 64, 64), (1.0, 1.0, 1.0), (1.0, 1.0, 1e-6), "2.621e"),
    ((400, 512, 512), (0.001, 0.0007, 0.0007), (1.0, 1.0, 1.0), "would become 1 of"),  # metres
    ((200, 200, 200), (40.0, 40.0, 40.0), (1.0, 1.0, 1.0), "8000000 voxels of 40 x 40 x 40 mm, which would"),
]


@pytest.mark.parametrize(("shape", "spacing", "target"), REAL)
def test_real_scans_may_be_resampled(shape, spacing, target) -> None:
    resample.check_zoom(shape, spacing, target)


@pytest.mark.parametrize(("shape", "spacing", "target", "message"), WRONG)
def test_voxels_of_another_order_of_magnitude_are_refused(shape, spacing, target, message) -> None:
    with pytest.raises(GeometryError, match="case 7 has voxels of another order of magnitude") as error:
        resample.check_zoom(shape, spacing, target, case="case 7", file="a.nii")
    assert message in str(error.value)
    assert "a.nii" in str(error.value)
