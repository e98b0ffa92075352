from __future__ import annotations

import numpy as np
import pytest

from tests.made.prepared_cases import CT
from volseg.planning.channel import ChannelIntensity
from volseg.planning.fingerprint import IntensityStatistics
from volseg.preprocessing import intensity
from volseg.preprocessing.intensity import Scaling, case_scaling, scalings

ZSCORE = ChannelIntensity(rule="zscore")
NONZERO = ChannelIntensity(rule="zscore", nonzero=True)


def normalized(data: np.ndarray, *rules: ChannelIntensity) -> np.ndarray:
    return intensity.normalize(data, scalings(data, rules))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_ct_by_hand(dtype: type) -> None:
    data = np.array([-1000, -100, 50, 75, 200, 3000], dtype=dtype).reshape(1, 1, 2, 3)
    result = normalized(data, CT)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), [-6, -6, 0, 1, 6, 6])


def test_zscore_by_the_formula() -> None:
    data = np.random.default_rng(0).gamma(2, 100, (1, 6, 7, 8)).astype(np.float32)
    low, high = np.percentile(data, (0.5, 99.5))
    clipped = np.clip(data.astype(np.float64), low, high)
    np.testing.assert_allclose(normalized(data, ZSCORE), (clipped - clipped.mean()) / clipped.std(), atol=1e-4)


@pytest.mark.parametrize(("gain", "offset"), [(3.0, 0.0), (0.01, 500.0)])
def test_zscore_does_not_depend_on_the_scanner_s_scale(gain: float, offset: float) -> None:
    data = np.random.default_rng(0).normal(100, 20, (1, 6, 7, 8))
    np.testing.assert_allclose(normalized(data * gain + offset, ZSCORE), normalized(data, ZSCORE), atol=1e-3)


def test_zscore_of_nonzero_voxels_leaves_zeros_alone() -> None:
    data = np.random.default_rng(0).normal(500, 20, (1, 6, 7, 8))
    alone = normalized(data, ZSCORE)
    padded = np.pad(data, ((0, 0), (4, 4), (4, 4), (4, 4)))
    result = normalized(padded, NONZERO)
    np.testing.assert_allclose(result[:, 4:-4, 4:-4, 4:-4], alone, atol=1e-5)
    assert (result[padded == 0] == 0).all()


def test_the_rules_that_a_channel_s_name_states() -> None:
    """As nnU-Net names them."""
    data = np.array([-10.0, 0.0, 30.0, 90.0]).reshape(1, 1, 2, 2)
    expected = {
        "noNorm": [-10, 0, 30, 90],
        "rescale_0_1": [0, 0.1, 0.4, 1],
        "rescale_to_0_1": [0, 0.1, 0.4, 1],
        "RGB_to_0_1": [-10 / 255, 0, 30 / 255, 90 / 255],
        "CT": [-6, -5, -2, 4],
    }
    foreground = IntensityStatistics(mean=50, std=10, percentile_00_5=-10, percentile_99_5=90)
    for name, values in expected.items():
        rule = ChannelIntensity.of_channel(name, foreground, nonzero=True)
        np.testing.assert_allclose(normalized(data, rule).ravel(), values, rtol=1e-6)
    for name in ("zscore", "T1", "FLAIR"):
        assert ChannelIntensity.of_channel(name, foreground, nonzero=True) == NONZERO
    assert (normalized(np.full((1, 2, 2, 2), 7), ChannelIntensity(rule="rescale")) == 0).all()


def test_an_empty_or_constant_channel_becomes_zero() -> None:
    assert (normalized(np.zeros((1, 2, 2, 2)), NONZERO) == 0).all()
    assert (normalized(np.full((1, 2, 2, 2), 7), ZSCORE) == 0).all()


def test_each_channel_goes_by_its_own_rule_and_the_input_stays() -> None:
    data = np.random.default_rng(0).normal(0, 50, (2, 4, 4, 4))
    before = data.copy()
    result = normalized(data, CT, ZSCORE)
    np.testing.assert_array_equal(result[:1], normalized(data[:1], CT))
    np.testing.assert_array_equal(result[1:], normalized(data[1:], ZSCORE))
    np.testing.assert_array_equal(data, before)


def test_a_missing_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        normalized(np.zeros((2, 2, 2, 2)), CT)


@pytest.mark.parametrize("nonzero", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.float32, np.float64])
def test_statistics_of_a_case_by_numpy(dtype: type, nonzero: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in slabs by counting; numpy sorts a float copy."""
    monkeypatch.setattr(intensity, "SLAB_VOXELS", 200)
    values = np.random.default_rng(0).normal(40, 30, (9, 11, 13))
    data = (values if np.dtype(dtype).kind == "f" else values.round()).clip(0).astype(dtype)
    if np.dtype(dtype).kind != "u":
        data[0] *= -3
    measured = (data[data != 0] if nonzero else data).astype(np.float64)
    low, high = np.percentile(measured, (0.5, 99.5))
    clipped = measured.clip(low, high)
    expected = Scaling(low, high, clipped.mean(), clipped.std(), nonzero)
    result = case_scaling(data, nonzero)
    for name in ("low", "high", "mean", "std"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name), rel=1e-6, abs=1e-6)
