from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tests.made.masks import SPACINGS, brute_distances
from volseg.metrics import nearest
from volseg.metrics.nearest import nearest_distances_mm


def cloud(rng: np.random.Generator, size: int, spread: int) -> np.ndarray:
    return np.unique(rng.integers(0, spread, (size, 3)), axis=0).astype(np.int32)


@pytest.mark.parametrize("seed", range(12))
def test_distances_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing = tuple(float(s) for s in rng.choice(SPACINGS, 3))
    points, targets = cloud(rng, 200, 30) + rng.integers(-40, 40, 3), cloud(rng, int(rng.integers(1, 200)), 30)
    np.testing.assert_allclose(
        nearest_distances_mm(points, targets, spacing), brute_distances(points, targets, spacing), rtol=1e-12
    )


def test_distances_are_exact_up_to_the_limit_and_above_it_otherwise() -> None:
    rng = np.random.default_rng(0)
    points, targets, spacing = cloud(rng, 300, 25), cloud(rng, 20, 25), (1.0, 0.7, 2.5)
    expected = brute_distances(points, targets, spacing)
    for limit in (0.0, 0.7, 1.0, 2.5, 4.0, 20.0):
        distances = nearest_distances_mm(points, targets, spacing, limit)
        near = expected <= limit
        np.testing.assert_allclose(distances[near], expected[near], rtol=1e-12)
        assert (distances[~near] > limit).all()


@pytest.mark.parametrize("voxel_ns", [0.0, np.inf])
def test_tree_and_transform_agree(voxel_ns: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transform of cost 0 is always used for far points; with infinite cost the tree is."""
    used = []
    transform = ndimage.distance_transform_edt
    monkeypatch.setattr(nearest, "TRANSFORM_VOXEL_NS", voxel_ns)
    monkeypatch.setattr(ndimage, "distance_transform_edt", lambda *a, **k: used.append(1) or transform(*a, **k))
    rng = np.random.default_rng(1)
    points, targets, spacing = cloud(rng, 200, 20) + 30, cloud(rng, 50, 20), (0.8, 1.1, 3.0)
    distances = nearest_distances_mm(points, targets, spacing)
    np.testing.assert_allclose(distances, brute_distances(points, targets, spacing), rtol=1e-12)
    assert bool(used) == (voxel_ns == 0.0)


def test_a_hollow_shell_uses_the_transform() -> None:
    """All targets are equally far from the centre: a tree would visit every one of them for every point."""
    grid = np.stack(np.meshgrid(*[np.arange(-40, 41)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    radius = np.linalg.norm(grid, axis=1)
    shell, centre = grid[np.abs(radius - 39.5) < 0.5], grid[radius < 12]
    calls = []
    transform = ndimage.distance_transform_edt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ndimage, "distance_transform_edt", lambda *a, **k: calls.append(1) or transform(*a, **k))
        distances = nearest_distances_mm(centre, shell, (1.0, 1.0, 1.0))
    assert calls
    np.testing.assert_allclose(distances[::200], brute_distances(centre[::200], shell, (1.0, 1.0, 1.0)), rtol=1e-12)


def test_neighbour_distances_are_exact_at_the_tolerance() -> None:
    """0.1 has no exact binary form; ten such voxels must still lie within 1 mm, as in scipy's transform."""
    distances = nearest_distances_mm(np.array([[10, 0, 0]]), np.array([[0, 0, 0]]), (0.1, 0.1, 0.1))
    assert distances[0] <= 1.0
