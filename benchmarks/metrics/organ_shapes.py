"""Seeded label maps with organ-like shapes, and plausible predictions of them. Independent of volseg.

Each organ is an ellipsoid whose radius varies smoothly with direction (a few random plane waves), turned at random;
the number of voxels is exact. A prediction is the reference shifted by a few voxels, eroded, and with
stray blobs anywhere in the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """A reference and a prediction of it, both (D, H, W); spacing in mm along these axes."""

    reference: Labels
    prediction: Labels
    spacing_mm: tuple[float, float, float]


def organ(voxels: int, spacing_mm: tuple[float, float, float], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return one organ of exactly this many voxels, in its bounding box."""
    radius = (0.75 / np.pi * voxels * np.prod(spacing_mm)) ** (1 / 3)
    axes = radius * np.exp(rng.normal(0, 0.25, 3))
    half = [int(np.ceil(1.7 * axes.max() / step)) for step in spacing_mm]
    grid = np.meshgrid(
        *[np.arange(-n, n + 1, dtype=np.float32) * s for n, s in zip(half, spacing_mm, strict=True)], indexing="ij"
    )
    points = np.stack(grid, axis=-1) @ Rotation.random(random_state=int(rng.integers(2**31))).as_matrix().astype("f4")
    score = np.linalg.norm(points / axes.astype("f4"), axis=-1)
    for _ in range(6):
        wave = rng.normal(0, 1.6 / radius, 3).astype("f4")
        score *= 1 + 0.09 * np.sin(points @ wave + np.float32(rng.uniform(0, 2 * np.pi)))
    threshold = np.partition(score.ravel(), voxels - 1)[voxels - 1]
    return _trimmed(score <= threshold)


def reference(
    shape: tuple[int, int, int],
    sizes: list[int],
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> Labels:
    """Return organs 1, 2, ... of these sizes, placed at random, largest first, without overlap."""
    labels = np.zeros(shape, np.uint8)
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        mask = organ(sizes[number], spacing_mm, rng)
        for attempt in range(1, 200):
            if attempt % 10 == 0:  # another shape may fit
                mask = organ(sizes[number], spacing_mm, rng)
            free = [n - m for n, m in zip(shape, mask.shape, strict=True)]
            if min(free) < 0:
                continue
            start = [int(rng.integers(f + 1)) for f in free]
            box = labels[tuple(slice(a, a + m) for a, m in zip(start, mask.shape, strict=True))]
            if not box[mask].any():
                box[mask] = number + 1
                break
        else:
            raise RuntimeError(f"no room for organ {number + 1}")
    return labels


def prediction(labels: Labels, rng: np.random.Generator, blobs: int = 3) -> Labels:
    """Return every organ shifted by up to (1, 2, 2) voxels, eroded by one voxel in plane, with stray blobs."""
    predicted = np.zeros_like(labels)
    cross = ndimage.generate_binary_structure(3, 1)
    cross[[0, 2]] = False
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        mask = ndimage.binary_erosion(np.pad(labels[box] == value, 1), cross)
        shift = rng.integers((-1, -2, -2), (2, 3, 3))
        _paste(predicted, mask, [axis.start - 1 + int(s) for axis, s in zip(box, shift, strict=True)], value)
        for _ in range(blobs):
            size = rng.integers(1, 4, 3) + 1
            corner = [int(rng.integers(0, n - s)) for n, s in zip(labels.shape, size, strict=True)]
            _paste(predicted, np.ones(size, bool), corner, value)
    return predicted


def pair(
    seed: int,
    shape: tuple[int, int, int] = (132, 512, 512),
    classes: int = 13,
    smallest: int = 1_600,
    largest: int = 1_000_000,
    spacing_mm: tuple[float, float, float] = (3.0, 0.75, 0.75),
) -> Pair:
    """Return a reference with organ sizes in geometric progression, and a prediction."""
    rng = np.random.default_rng(seed)
    sizes = [round(n) for n in np.geomspace(smallest, largest, classes)] if classes > 1 else [largest]
    labels = reference(shape, sizes, spacing_mm, rng)
    return Pair(labels, prediction(labels, rng), spacing_mm)


def displaced(seed: int, distance_mm: float = 100.0, voxels: int = 300_000) -> Pair:
    """Return one organ, predicted at another position."""
    rng = np.random.default_rng(seed)
    spacing_mm = (3.0, 0.75, 0.75)
    mask = organ(voxels, spacing_mm, rng)
    labels = np.zeros((132, 512, 512), np.uint8)
    start = [(132 - mask.shape[0]) // 2, (512 - mask.shape[1]) // 2, 80]
    _paste(labels, mask, start, 1)
    predicted = np.zeros_like(labels)
    _paste(predicted, mask, [start[0], start[1], start[2] + round(distance_mm / spacing_mm[2])], 1)
    return Pair(labels, predicted, spacing_mm)


def hollow(voxels: int = 1_000_000) -> Pair:
    """Return a ball, predicted with a cavity of half its radius, whose wall is equally far from all of the surface."""
    spacing_mm = (3.0, 0.75, 0.75)
    centre = (65.5, 255.5, 255.5)
    radius = (0.75 / np.pi * voxels * float(np.prod(spacing_mm))) ** (1 / 3)
    steps = [(np.arange(n) - c) * s for n, c, s in zip((132, 512, 512), centre, spacing_mm, strict=True)]
    squares = steps[0][:, None, None] ** 2 + steps[1][:, None] ** 2 + steps[2] ** 2
    labels = (squares <= radius**2).astype(np.uint8)
    return Pair(labels, labels & (squares > (radius / 2) ** 2), spacing_mm)


def _trimmed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask[ndimage.find_objects(mask.astype(np.uint8))[0]]


def _paste(labels: Labels, mask: NDArray[np.bool_], start: list[int], value: int) -> None:
    """Set the voxels of the mask whose corner lies at ``start``; voxels outside of the image are dropped."""
    voxels = np.argwhere(mask) + start
    voxels = voxels[((voxels >= 0) & (voxels < labels.shape)).all(axis=1)]
    labels[tuple(voxels.T)] = value
