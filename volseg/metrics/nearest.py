"""Exact distances from a set of voxels to the nearest voxel of another set.

Most border voxels of a good prediction lie within a few voxels of the reference. A search of their neighbours in order
of distance finds these. A k-d tree handles the remaining points. A distance transform replaces the tree where the tree
would visit most of its leaves: for points about equally far from all targets, as inside a hollow organ.
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

_NEIGHBOURS = 200  # neighbours searched before the tree is used
_SAMPLE = 64  # points from which the tree's cost is estimated
# Measured costs in ns, from which the cheaper of tree and transform is selected.
TREE_POINT_NS, TREE_VISIT_NS, TRANSFORM_VOXEL_NS = 1000.0, 8.0, 60.0


def nearest_distances_mm(
    points: Indices, targets: Indices, spacing_mm: Sequence[float], limit_mm: float = np.inf
) -> Distances:
    """Compute the Euclidean distance from every point to the nearest target.

    Args:
        points: Voxel indices, shape (n, 3).
        targets: Voxel indices, shape (m, 3).
        spacing_mm: Voxel size along the three axes.
        limit_mm: Distances above this limit may be returned as infinity.

    Returns:
        Distances in mm, shape (n,); infinite if there are no targets.
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
    """Return the lengths of index differences (n, 3); squares are summed in axis order, as in scipy's transform."""
    squares: Distances = (steps * np.array(spacing)) ** 2
    return np.sqrt(squares[:, 0] + squares[:, 1] + squares[:, 2])


def _search_radius_mm(spacing: tuple[float, float, float]) -> float:
    """Return the radius of a ball that holds about ``_NEIGHBOURS`` voxels."""
    volume_mm3 = _NEIGHBOURS * spacing[0] * spacing[1] * spacing[2]
    return max(float(np.cbrt(0.75 / np.pi * volume_mm3)), min(spacing))


@lru_cache(maxsize=64)
def _shells(spacing: tuple[float, float, float], radius: float) -> tuple[tuple[float, Indices], ...]:
    """Return the neighbour offsets up to a radius, grouped by their length in mm, shortest first."""
    reach = [int(radius / step + 1e-9) for step in spacing]
    offsets = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = _lengths_mm(offsets, spacing)
    inside = lengths <= radius
    offsets, lengths = offsets[inside], lengths[inside]
    return tuple((float(length), offsets[lengths == length]) for length in np.unique(lengths))


def _search_neighbours(
    points: Indices, targets: Indices, shells: Sequence[tuple[float, Indices]], distances: Distances
) -> NDArray[np.intp]:
    """Fill in the distances up to the radius of the shells and return the indices of the remaining points.

    The targets are looked up in a table of the box that holds the targets within reach of a point.
    """
    reach = np.abs(np.concatenate([offsets for _, offsets in shells])).max(axis=0)
    low = np.maximum(targets.min(axis=0), points.min(axis=0) - reach)
    high = np.minimum(targets.max(axis=0), points.max(axis=0) + reach)
    if (low > high).any():
        return np.arange(len(points))
    rest = np.flatnonzero(_inside(points, low - reach, high + reach))
    shape = high - low + 4 * reach + 1
    # Flat indices turn a shift by an offset into one addition for all points.
    strides = np.array([shape[1] * shape[2], shape[2], 1], dtype=np.int64)
    origin = low - 2 * reach
    table = np.zeros(int(np.prod(shape, dtype=np.int64)), dtype=bool)
    table[(targets[_inside(targets, low, high)] - origin) @ strides] = True
    flat_points = (points[rest] - origin) @ strides
    for length, offsets in shells:
        hit = table[flat_points + int(offsets[0] @ strides)]
        for offset in offsets[1:]:
            hit |= table[flat_points + int(offset @ strides)]
        distances[rest[hit]] = length
        rest, flat_points = rest[~hit], flat_points[~hit]
        if not len(rest):
            break
    return np.flatnonzero(np.isinf(distances))


def _inside(points: Indices, low: Indices, high: Indices) -> NDArray[np.bool_]:
    """Return which points lie in the box, both ends included."""
    return np.asarray(((points >= low) & (points <= high)).all(axis=1))


def _search_far(points: Indices, targets: Indices, spacing: tuple[float, float, float]) -> Distances:
    """Compute distances with a k-d tree of the targets, or a transform of the common box where that is cheaper."""
    scale = np.array(spacing)
    tree = cKDTree(targets * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
    low = np.minimum(points.min(axis=0), targets.min(axis=0))
    shape = np.maximum(points.max(axis=0), targets.max(axis=0)) - low + 1
    transform_ns = TRANSFORM_VOXEL_NS * float(np.prod(shape, dtype=np.float64))
    # Estimate the tree's visits on a sample only if its worst case is dearer than the transform.
    if len(points) * TREE_POINT_NS + len(points) * len(targets) * TREE_VISIT_NS > transform_ns:
        sample = points[:: max(1, len(points) // _SAMPLE)] * scale
        reach, _ = tree.query(sample)
        visits = tree.query_ball_point(sample, reach * 1.1 + scale.max(), return_length=True)
        if len(points) * (TREE_POINT_NS + TREE_VISIT_NS * float(np.mean(visits))) > transform_ns:
            return _transform_distances(points - low, targets - low, tuple(shape), spacing)
    _, nearest = tree.query(points * scale)
    return _lengths_mm(targets[nearest] - points, spacing)


def _transform_distances(
    points: Indices, targets: Indices, shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> Distances:
    """Compute distances from the feature transform of a box (12 bytes per voxel; the distance transform needs 60)."""
    background = np.ones(shape, dtype=bool)
    background[tuple(targets.T)] = False
    nearest = ndimage.distance_transform_edt(background, sampling=spacing, return_distances=False, return_indices=True)
    return _lengths_mm(nearest[:, points[:, 0], points[:, 1], points[:, 2]].T - points, spacing)
