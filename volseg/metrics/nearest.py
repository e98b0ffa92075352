"""Exact distances from a set of voxels to the nearest voxel of another set.

Most border voxels of a useful prediction lie within a few voxels of the reference: those are found by looking at the
neighbours in order of distance. What is left is answered by a tree, or by a distance transform where the tree would
have to walk through most of its leaves (points about equally far from everything, as inside a hollow organ).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Indices = NDArray[np.integer]
Distances = NDArray[np.float64]

_NEIGHBOURS = 200  # neighbours looked at before the tree takes over
_SAMPLE = 64  # points on which the tree's cost is estimated
_TREE_POINT_NS, _TREE_VISIT_NS, _TRANSFORM_VOXEL_NS = 1000.0, 8.0, 60.0


def nearest_distances_mm(
    points: Indices, targets: Indices, spacing_mm: Sequence[float], limit_mm: float = np.inf
) -> Distances:
    """Euclidean distance from every point to the nearest target.

    Args:
        points: Voxel indices, shape (n, 3).
        targets: Voxel indices, shape (m, 3).
        spacing_mm: Voxel size along the three axes.
        limit_mm: Distances above this limit may be given as infinity.

    Returns:
        Distances in mm, shape (n,); infinite without targets.
    """
    if not len(points) or not len(targets):
        return np.full(len(points), np.inf)
    spacing = (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
    radius = min(_search_radius_mm(spacing), limit_mm)
    distances = np.full(len(points), np.inf)
    rest = _search_neighbours(points, targets, _shells(spacing, radius), distances)
    if len(rest) and limit_mm > radius:
        distances[rest] = _search_far(points[rest], targets, spacing)
    return distances


def _lengths_mm(steps: Indices, spacing: tuple[float, float, float]) -> Distances:
    """Length of index differences (n, 3); squares are added in the order of the axes, as scipy's transform does."""
    squares: Distances = (steps * np.array(spacing)) ** 2
    return np.sqrt(squares[:, 0] + squares[:, 1] + squares[:, 2])


def _search_radius_mm(spacing: tuple[float, float, float]) -> float:
    """Radius of a ball that holds about ``_NEIGHBOURS`` voxels."""
    volume_mm3 = _NEIGHBOURS * spacing[0] * spacing[1] * spacing[2]
    return max(float(np.cbrt(0.75 / np.pi * volume_mm3)), min(spacing))


@lru_cache(maxsize=64)
def _shells(spacing: tuple[float, float, float], radius: float) -> tuple[tuple[float, Indices], ...]:
    """Neighbour offsets up to a radius, grouped by their length in mm, shortest first."""
    reach = [int(radius / step + 1e-9) for step in spacing]
    offsets = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = _lengths_mm(offsets, spacing)
    inside = lengths <= radius
    offsets, lengths = offsets[inside], lengths[inside]
    return tuple((float(length), offsets[lengths == length]) for length in np.unique(lengths))


def _search_neighbours(
    points: Indices, targets: Indices, shells: Sequence[tuple[float, Indices]], distances: Distances
) -> NDArray[np.intp]:
    """Fill in the distances that the shells reach; return the numbers of the points that remain.

    The targets are looked up in a table of the box in which there are both targets and points within reach of them.
    """
    reach = np.abs(np.concatenate([offsets for _, offsets in shells])).max(axis=0)
    low = np.maximum(targets.min(axis=0), points.min(axis=0) - reach)
    high = np.minimum(targets.max(axis=0), points.max(axis=0) + reach)
    if (low > high).any():
        return np.arange(len(points))
    rest = np.flatnonzero(_inside(points, low - reach, high + reach))
    shape = high - low + 4 * reach + 1
    strides = np.array([shape[1] * shape[2], shape[2], 1], dtype=np.int64)
    origin = low - 2 * reach
    table = np.zeros(int(np.prod(shape, dtype=np.int64)), dtype=bool)
    table[(targets[_inside(targets, low, high)] - origin) @ strides] = True
    places = (points[rest] - origin) @ strides
    for length, offsets in shells:
        hit = table[places + int(offsets[0] @ strides)]
        for offset in offsets[1:]:
            hit |= table[places + int(offset @ strides)]
        distances[rest[hit]] = length
        rest, places = rest[~hit], places[~hit]
        if not len(rest):
            break
    return np.flatnonzero(np.isinf(distances))


def _inside(points: Indices, low: Indices, high: Indices) -> NDArray[np.bool_]:
    """Which of the points lie in the box, both ends included."""
    return np.asarray(((points >= low) & (points <= high)).all(axis=1))


def _search_far(points: Indices, targets: Indices, spacing: tuple[float, float, float]) -> Distances:
    """Distances by a tree over the targets, or by a distance transform of the common box if that is cheaper."""
    scale = np.array(spacing)
    tree = cKDTree(targets * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
    low = np.minimum(points.min(axis=0), targets.min(axis=0))
    shape = np.maximum(points.max(axis=0), targets.max(axis=0)) - low + 1
    transform_ns = _TRANSFORM_VOXEL_NS * float(np.prod(shape, dtype=np.float64))
    if len(points) * _TREE_POINT_NS + len(points) * len(targets) * _TREE_VISIT_NS > transform_ns:
        sample = points[:: max(1, len(points) // _SAMPLE)] * scale
        reach, _ = tree.query(sample)
        visits = tree.query_ball_point(sample, reach * 1.1 + scale.max(), return_length=True)
        if len(points) * (_TREE_POINT_NS + _TREE_VISIT_NS * float(np.mean(visits))) > transform_ns:
            return _transform_distances(points - low, targets - low, tuple(shape), spacing)
    _, found = tree.query(points * scale)
    return _lengths_mm(targets[found] - points, spacing)


def _transform_distances(
    points: Indices, targets: Indices, shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> Distances:
    """Distances read off the feature transform of a box (12 bytes a voxel; the transform itself would take 60)."""
    free = np.ones(shape, dtype=bool)
    free[tuple(targets.T)] = False
    nearest = ndimage.distance_transform_edt(free, sampling=spacing, return_distances=False, return_indices=True)
    return _lengths_mm(nearest[:, points[:, 0], points[:, 1], points[:, 2]].T - points, spacing)
