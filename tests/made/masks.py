"""Random masks of many kinds for the metric tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SPACINGS = (0.5, 0.7, 1.0, 1.3, 2.5, 7.7)


def random_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Noise, blobs, or a few single voxels; never empty."""
    kind = rng.integers(3)
    noise = rng.random(shape)
    mask = noise > 0.4 if kind == 0 else ndimage.gaussian_filter(noise, 1.5) > 0.5 if kind == 1 else noise > 0.97
    if not mask.any():
        mask[tuple(n // 2 for n in shape)] = True
    return mask


def random_pair(seed: int, largest: int = 14) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[float, ...]]:
    """Prediction, reference and spacing; C and Fortran order in turn."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(2, largest, 3))  # a single slice is scored in its plane
    pred, ref = random_mask(rng, shape), random_mask(rng, shape)
    if seed % 2:
        pred = np.asfortranarray(pred)
    if seed % 3:
        ref = np.asfortranarray(ref)
    return pred, ref, tuple(float(s) for s in rng.choice(SPACINGS, 3))


def brute_border(inside: NDArray[np.bool_], known: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
    """Indices of voxels with a neighbour (or the outside of the image) that is known not to be of the class."""
    known = np.ones(inside.shape, bool) if known is None else known
    found = []
    for index in np.argwhere(inside & known):
        for axis in range(3):
            for step in (-1, 1):
                other = index.copy()
                other[axis] += step
                outside = not 0 <= other[axis] < inside.shape[axis]
                if outside or (known[tuple(other)] and not inside[tuple(other)]):
                    found.append(tuple(index))
    return np.array(sorted(set(found)), dtype=np.intp).reshape(-1, 3)


def brute_distances(points: NDArray[np.integer], targets: NDArray[np.integer], spacing: tuple[float, ...]) -> NDArray:
    """Distance to the nearest target, from all pairs."""
    steps = (points[:, None, :] - targets[None, :, :]) * np.array(spacing)
    return np.sqrt((steps**2).sum(axis=-1)).min(axis=1)
