from __future__ import annotations

import numpy as np
import pytest

from tests.made.masks import brute_border, random_mask
from volseg.metrics import surfaces
from volseg.metrics.surfaces import find_surfaces


def as_set(rows: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(x) for x in row) for row in rows}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slab", [1, 300, 10**9])
def test_border_voxels_equal_brute_force(seed: int, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "SLAB_VOXELS", slab)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rng.integers(1, 8, 3)).astype(np.uint8)
    surfaces_by_value = find_surfaces(labels if seed % 2 else np.asfortranarray(labels))
    assert set(surfaces_by_value) == set(np.unique(labels)) - {0}
    for value, surface in surfaces_by_value.items():
        assert as_set(surface.voxels) == as_set(brute_border(labels == value))
        assert len(as_set(surface.voxels)) == len(surface.voxels)


@pytest.mark.parametrize("seed", range(4))
def test_classes_have_the_same_surfaces_together_and_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (random_mask(rng, (6, 9, 7)) * rng.integers(1, 5, (6, 9, 7))).astype(np.uint16)
    together = find_surfaces(labels)
    for value, surface in together.items():
        alone = find_surfaces((labels == value).astype(np.uint8))[1]
        codes = dict(zip(map(tuple, surface.surfels.tolist()), surface.codes.tolist(), strict=True))
        assert codes == dict(zip(map(tuple, alone.surfels.tolist()), alone.codes.tolist(), strict=True))
        assert as_set(surface.voxels) == as_set(alone.voxels)


def test_codes_mark_the_corners_inside_the_class() -> None:
    labels = np.zeros((2, 2, 2), np.uint8)
    labels[0, 1, 0] = 7
    surface = find_surfaces(labels)[7]
    codes = dict(zip(map(tuple, surface.surfels.tolist()), surface.codes.tolist(), strict=True))
    assert codes[1, 1, 1] == 32  # offset (0, 1, 0) of the cube that holds the whole volume
    assert codes[0, 2, 1] == 128 >> 0b100  # the voxel is the cube's far corner along the first axis only
    assert len(codes) == 8


@pytest.mark.parametrize("seed", range(6))
def test_ignored_voxels_have_no_border(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (5, 6, 7)).astype(np.uint8)
    annotated = labels != 3
    for value, surface in find_surfaces(labels, ignore=3).items():
        assert as_set(surface.voxels) == as_set(brute_border(labels == value, annotated))
        for d, h, w in surface.surfels:
            cube = labels[max(d - 1, 0) : d + 1, max(h - 1, 0) : h + 1, max(w - 1, 0) : w + 1]
            assert not (cube == 3).any()


def test_an_empty_mask_has_no_surfaces() -> None:
    assert find_surfaces(np.zeros((3, 4, 5), np.uint8)) == {}
