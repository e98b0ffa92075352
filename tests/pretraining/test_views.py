"""Slices of stored scans and the views that are cut from them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pretraining.made import SHAPE, source, stored
from volseg.config.pretraining import PretrainConfig
from volseg.errors import DataError
from volseg.preprocessing.intensity import Scaling
from volseg.pretraining.slices import AS_STORED, ct_scaling, slice_sources, view_shape
from volseg.pretraining.views import SliceViews, blurred, changed, random_region, resized_crop


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def test_samples_have_their_shapes_and_are_those_of_their_index(tmp_path: Path) -> None:
    sources = [source(stored(tmp_path / name, noise((24, 26, 22)))) for name in "ab"]
    views = SliceViews(sources, SHAPE, seed=3, batch_size=4, samples=8)
    samples = [views[index] for index in range(8)]
    for sample in samples:
        assert sample["global"].shape == (2, 1, 56, 56)
        assert sample["local"].shape == (3, 1, 28, 28)
        assert sorted(sample["masked"].any(dim=1).tolist()) == [False, True]  # one of the two views
    counts = [int(sample["masked"].sum()) for sample in samples]
    assert counts[:4] == sorted(counts[:4])  # the shares of a batch are spread over their range
    assert min(counts) <= 3 < 6 <= max(counts) <= 8  # of 16 patches
    assert [sample["case"] for sample in samples].count("a") == 4
    again = SliceViews(sources, SHAPE, seed=3, batch_size=4, samples=8)[5]
    assert all(torch.equal(again[key], samples[5][key]) for key in ("global", "local", "masked"))
    other = SliceViews(sources, SHAPE, seed=4, batch_size=4, samples=8)[5]
    assert not torch.equal(other["global"], samples[5]["global"])
    none = SliceViews(sources, replace(SHAPE, local_views=0), seed=3, batch_size=4, samples=8)[0]
    assert none["local"].shape == (0, 1, 28, 28)


def test_slices_come_from_every_axis_and_only_from_those(tmp_path: Path) -> None:
    """Voxel values are the index along the axis, so that a slice is constant along its own axis alone."""
    for axis in range(3):
        ramp = np.moveaxis(np.broadcast_to(np.arange(24.0), (24, 24, 24)), -1, axis)
        scan = stored(tmp_path / f"ramp{axis}", ramp)
        piece = source(scan).piece(0, axis, 7, (2, 3), (5, 4))
        assert piece.shape == (1, 5, 4)
        assert torch.equal(piece, torch.full((1, 5, 4), 7.0))
        across = source(scan).piece(0, (axis + 1) % 3, 7, (2, 3), (5, 4))
        assert across.std() > 0
    rng = np.random.default_rng(0)
    only = source(stored(tmp_path / "only", np.broadcast_to(np.arange(24.0)[:, None, None], (24, 24, 24))), (0,))
    assert all(random_region(only, SHAPE, rng)[0].std() == 0 for _ in range(5))


def test_regions_without_content_are_drawn_again(tmp_path: Path) -> None:
    values = np.zeros((40, 24, 24))
    values[:12] = noise((12, 24, 24))
    rng, one = np.random.default_rng(0), source(stored(tmp_path / "a", values), (0,))
    empty = [float(random_region(one, SHAPE, rng)[0].std()) < 0.1 for _ in range(100)]
    assert sum(empty) < 20  # 70 if nothing was drawn again


def test_a_region_is_square_in_millimetres(tmp_path: Path) -> None:
    thick = source(stored(tmp_path / "thick", noise((12, 80, 80)), (4.0, 1.0, 1.0)))
    assert thick.size_of(0, 20) == (20, 20)
    assert thick.size_of(1, 20) == (5, 20)
    assert thick.size_of(1, 60) == (12, 60)  # as far as the slice reaches


def test_crops_keep_a_constant_and_have_the_area_drawn() -> None:
    rng = np.random.default_rng(0)
    constant = resized_crop(torch.full((1, 30, 40), 2.5), (1.0, 1.0), (0.3, 1.0), 28, rng)
    torch.testing.assert_close(constant, torch.full((1, 28, 28), 2.5))
    rows, columns = torch.meshgrid(torch.arange(200.0), torch.arange(400.0), indexing="ij")
    for seed in range(20):  # spans of the coordinates in a crop, of voxels of 2 x 1 mm
        high, wide = (
            float(crop.max() - crop.min())
            for crop in (
                resized_crop(each[None], (2.0, 1.0), (0.2, 0.2), 50, np.random.default_rng(seed))
                for each in (rows, columns)
            )
        )
        assert high * wide / (200 * 400) == pytest.approx(0.2, rel=0.06)
        assert 3 / 4 * 0.95 < 2 * high / wide < 4 / 3 * 1.05


def test_changes_of_intensity_stay_finite_and_keep_the_place() -> None:
    view = torch.zeros(1, 20, 20)
    view[:, 5:9, 11:15] = 3.0
    for seed in range(20):
        result = changed(view, 0.5, np.random.default_rng(seed))
        assert result.isfinite().all()
        assert result[:, 6:8, 12:14].mean() > result[:, 14:, :8].mean() + 0.5
    assert changed(torch.zeros(1, 8, 8), 1.0, np.random.default_rng(0)).isfinite().all()
    dot = torch.zeros(1, 31, 31)
    dot[0, 15, 15] = 1
    spread = blurred(dot, 1.5)[0]
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    variance = (spread.sum(dim=1) * (torch.arange(31.0) - 15) ** 2).sum().item()
    assert variance == pytest.approx(1.5**2, rel=0.02)


def test_views_have_as_many_tokens_as_fit(tmp_path: Path) -> None:
    scans = [stored(tmp_path / "a", noise((35, 50, 36))), stored(tmp_path / "b", noise((34, 47, 40)))]
    shape = view_shape(scans, PretrainConfig(token_stride=4), 14)
    assert (shape.global_tokens, shape.local_tokens) == (9, 4)  # 36 and 40 voxels
    assert view_shape(scans, PretrainConfig(token_stride=4, global_tokens=6, local_tokens=2), 14).global_tokens == 6
    with pytest.raises(DataError, match="too small for views of 4 x 4 tokens") as error:
        view_shape(scans, PretrainConfig(token_stride=16), 14)
    assert "slices of about 38" in str(error.value.found)
    assert error.value.hint == "set pretrain.token_stride=9"


def test_axes_with_small_slices_and_small_scans_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat, small = stored(tmp_path / "flat", noise((5, 60, 60))), stored(tmp_path / "small", noise((5, 6, 7)))
    with caplog.at_level(logging.WARNING):
        (kept,) = slice_sources([flat, small], "all", SHAPE, AS_STORED)
    assert (kept.scan.id, kept.axes) == ("flat", (0,))
    assert "1 scan: small" in caplog.text
    thick = stored(tmp_path / "thick", noise((30, 60, 60)), (1.0, 1.0, 5.0))
    assert slice_sources([thick], "slice", SHAPE, AS_STORED)[0].axes == (2,)
    assert slice_sources([thick], "all", SHAPE, AS_STORED)[0].axes == (0, 1, 2)


def test_ct_is_scaled_by_the_bodies_of_all_scans(tmp_path: Path) -> None:
    scans = [stored(tmp_path / str(hu), np.full((4, 4, 4), hu), is_ct=True) for hu in (0, 100)]
    assert ct_scaling(scans) == Scaling(0, 100, 50, 50)
    (first, _) = slice_sources(scans, "all", replace(SHAPE, global_tokens=1), ct_scaling(scans))
    assert torch.equal(first.piece(0, 0, 1, (0, 0), (2, 2)), torch.full((1, 2, 2), -1.0))


def test_without_scans_there_is_nothing_to_sample() -> None:
    with pytest.raises(DataError, match="no scan to pretrain on"):
        SliceViews([], SHAPE, seed=0, batch_size=1, samples=1)
