"""Scans that are far from the training scans are named with both values, and others are not."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.made.prepared_cases import made_plan
from volseg.errors import ConfigError
from volseg.geometry import ops
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.planning.channel import ChannelIntensity
from volseg.planning.fingerprint import CaseFingerprint
from volseg.planning.ranges import ScanRanges, unusual

CT = (ChannelIntensity(rule="ct", clip_low=-100.0, clip_high=300.0, mean=50.0, std=60.0),)
MRI = (ChannelIntensity(rule="zscore"),)
AFFINE = np.array([[-0.8, 0, 0, 5], [0, 0.8, 0, -3], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def fingerprint_of(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], low: float, high: float):
    """Return a measured case; triples in (R, A, S) order."""
    return CaseFingerprint(
        id="a", shape=shape, spacing_mm=spacing_mm, nonzero_shape=shape, classes={}, ranges=((low, high),)
    )


RANGES = ScanRanges.of(
    [
        fingerprint_of((40, 50, 20), (0.8, 0.8, 3.0), -1000, 400),
        fingerprint_of((50, 50, 30), (0.7, 0.8, 4.0), -1010, 500),
    ]
)


def body(air: float = -1000.0, dtype: type[np.generic] = np.int16) -> np.ndarray:
    """Return air, fat, soft tissue and some bone, (R, A, S) of 40 x 50 x 20 voxels."""
    values = np.random.default_rng(0).normal(40, 15, (40, 50, 20))
    values[:10], values[10:14], values[14] = air, -100, 400
    return values.astype(dtype)


def texts(values: np.ndarray, affine: np.ndarray = AFFINE, intensity: tuple[ChannelIntensity, ...] = CT) -> list[str]:
    assert RANGES is not None
    return unusual(Volume(values[None], Grid(values.shape, affine)), RANGES, intensity)


def test_the_smallest_and_largest_of_all_cases() -> None:
    expected = ScanRanges(
        spacing_mm=((0.7, 0.8), (0.8, 0.8), (3.0, 4.0)),
        extent_mm=((32.0, 35.0), (40.0, 40.0), (60.0, 120.0)),
        low=((-1010.0, -1000.0),),
        high=((400.0, 500.0),),
        identity_affine=False,
    )
    assert expected == RANGES
    assert ScanRanges.from_dict("plan.ranges", asdict(RANGES)) == RANGES


def test_a_scan_like_the_others_is_not_named_in_any_voxel_order() -> None:
    data, grid = body()[None], Grid((40, 50, 20), AFFINE)
    for codes in ("LAS", "SPL", "RIA"):
        assert unusual(Volume(*ops.reorient(data, grid, codes)), RANGES, CT) == []
    assert texts(body()[10:]) == []  # a part of the body, without air


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (body().clip(-1000) + 1024, "24 to 1424"),
        (((body() + 160) / 400).clip(0, 1).astype(np.float32), "0 to 1"),
        (np.clip(body(), -100, 155) + 100, "0 to 255"),
        (body() * 10.0, "-1e+04 to 4000"),
    ],
    ids=["shifted", "0 to 1", "window", "scaled"],
)
def test_values_that_are_not_hounsfield_units(values: np.ndarray, shown: str) -> None:
    found = texts(values)
    assert len(found) == 1
    low, high = shown.split(" to ")
    assert f"0.5 percentile {low} (training scans: -1010 to -1000), 99.5 percentile {high} (training" in found[0]
    assert "(training scans: 400 to 500); CT must be" in found[0]
    assert texts(values, intensity=MRI) == []  # a z-score does not depend on the scale


def test_voxel_sizes_and_fields_of_view() -> None:
    tenth = np.diag([0.1, 0.1, 0.1, 1]) @ AFFINE
    assert [text.split(":")[0] for text in texts(body(), tenth)] == [
        f"{name} along {axis}" for axis in "RAS" for name in ("voxel size", "field of view")
    ]
    thick = AFFINE @ np.diag([1, 1, 3, 1])
    assert texts(body(), thick) == ["voxel size along S: 9 mm; training scans: 3 to 4 mm"]
    assert texts(np.tile(body(), (1, 1, 5))) == ["field of view along S: 300 mm; training scans: 60 to 120 mm"]


def test_an_identity_affine() -> None:
    assert "the affine is the identity" in texts(body(), np.eye(4))[0]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"low": [[1, 2, 3]]}, r"plan\.ranges\.low\[0\]"),
        ({"spacing_mm": [[1, 2]]}, r"plan\.ranges\.spacing_mm"),
        ({"spacing_mm": 3}, r"plan\.ranges\.spacing_mm"),
        ({"more": 1}, r"plan\.ranges\.more"),
        ({"identity_affine": 1}, r"plan\.ranges\.identity_affine"),
    ],
)
def test_invalid_ranges_are_named(changes: dict[str, object], key: str) -> None:
    assert RANGES is not None
    with pytest.raises(ConfigError, match=key):
        ScanRanges.from_dict("plan.ranges", asdict(RANGES) | changes)


def test_a_missing_key_and_another_number_of_channels() -> None:
    assert RANGES is not None
    with pytest.raises(ConfigError, match=r"plan\.ranges\.extent_mm is missing"):
        ScanRanges.from_dict("plan.ranges", {"spacing_mm": [[1, 2]] * 3})
    with pytest.raises(ConfigError, match="one entry for each channel"):
        made_plan(ranges=replace(RANGES, low=RANGES.low * 2))
