from __future__ import annotations

import numpy as np
import pytest

from tests.made.masks import SPACINGS, brute_distances
from volseg.metrics import nearest
from volseg.metrics.nearest import nearest_distances_mm


def cloud(rng: np.random.Generator, size: int, spread: int) -> np.ndarray:
    return np.unique(rng.integers(0, spread, (size, 3)), axis=0).astype(np.int32)


@pytest.mark.parametrize("seed", range(12))
def test_equals_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing = tuple(float(s) for s in rng.choice(SPACINGS, 3))
    points, targets = cloud(rng, 200, 30) + rng.integers(-40, 40, 3), cloud(rng, int(rng.integers(1, 200)), 30)
    np.testing.assert_allclose(
        nearest_distances_mm(points, targets, spacing), brute_distances(points, targets, spacing), rtol=1e-12
    )


def test_within_the_limit_exact_beyond_it_at_least_above() -> None:
    rng = np.random.default_rng(0)
    points, targets, spacing = cloud(rng, 300, 25), cloud(rng, 20, 25), (1.0, 0.7, 2.5)
    expected = brute_distances(points, targets, spacing)
    for limit in (0.0, 0.7, 1.0, 2.5, 4.0, 20.0):
        found = nearest_distances_mm(points, targets, spacing, limit)
        near = expected <= limit
        np.testing.assert_allclose(found[near], expected[near], rtol=1e-12)
        assert (found[~near] > limit).all()


@pytest.mark.parametrize("voxel_ns", [0.0, np.inf])
def test_tree_and_transform_agree(voxel_ns: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a free transform every far point goes through it, with an infinitely dear one through the tree."""
    used = []
    transform = nearest._transform_distances
    monkeypatch.setattr(nearest, "_TRANSFORM_VOXEL_NS", voxel_ns)
    monkeypatch.setattr(nearest, "_transform_distances", lambda *a: used.append(1) or transform(*a))
    rng = np.random.default_rng(1)
    points, targets, spacing = cloud(rng, 200, 20) + 30, cloud(rng, 50, 20), (0.8, 1.1, 3.0)
    found = nearest_distances_mm(points, targets, spacing)
    np.testing.assert_allclose(found, brute_distances(points, targets, spacing), rtol=1e-12)
    assert bool(used) == (voxel_ns == 0.0)


def test_a_hollow_shell_goes_to_the_transform() -> None:
    """All targets are equally far from the centre: a tree would visit every one of them for every point."""
    grid = np.stack(np.meshgrid(*[np.arange(-40, 41)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    radius = np.linalg.norm(grid, axis=1)
    shell, centre = grid[np.abs(radius - 39.5) < 0.5], grid[radius < 12]
    calls = []
    original = nearest._transform_distances
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_transform_distances", lambda *a: calls.append(1) or original(*a))
        found = nearest_distances_mm(centre, shell, (1.0, 1.0, 1.0))
    assert calls
    np.testing.assert_allclose(found[::200], brute_distances(centre[::200], shell, (1.0, 1.0, 1.0)), rtol=1e-12)


def test_distances_from_the_neighbourhood_are_exact_at_a_tolerance() -> None:
    """0.1 has no exact binary form; ten voxels of it must still be within 1 mm, as in scipy's transform."""
    found = nearest_distances_mm(np.array([[10, 0, 0]]), np.array([[0, 0, 0]]), (0.1, 0.1, 0.1))
    assert found[0] <= 1.0
