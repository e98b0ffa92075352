"""Dice, IoU and volume error, computed from voxel counts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from volseg.geometry.volume import LARGEST_LABEL
from volseg.metrics.pair import ClassPair

Counts = NDArray[np.int64]
_SLAB_VOXELS = 1_000_000  # voxels counted at once, which bounds the memory


def count_voxels(pred: NDArray[np.integer], ref: NDArray[np.integer]) -> tuple[Counts, Counts, Counts]:
    """Count the voxels of every label value in the prediction, in the reference, and in their intersection.

    Args:
        pred: Labels 0 to 65535, shape (D, H, W).
        ref: Labels of the same shape.

    Returns:
        Three arrays indexed by label value; the count of value 0 (background) is always 0.
    """
    if ref.flags.f_contiguous:
        pred, ref = pred.T, ref.T  # slabs along the last axis are contiguous
    size = 1 + max(int(pred.max(initial=0)), int(ref.max(initial=0)))
    totals = np.zeros((3, size), dtype=np.int64)
    step = max(1, _SLAB_VOXELS // max(1, ref[0].size))
    for start in range(0, len(ref), step):
        p, r = pred[start : start + step], ref[start : start + step]
        for total, labels in zip(totals, (p[p != 0], r[r != 0], r[(p == r) & (r != 0)]), strict=True):
            total += np.bincount(labels, minlength=size)
    return totals[0], totals[1], totals[2]


def label_values(labels: NDArray[np.integer]) -> tuple[int, ...]:
    """Return the values that occur in a label map, ascending."""
    values: set[int] = set()
    for part in labels.T if labels.flags.f_contiguous else labels:
        low, high = int(part.min(initial=0)), int(part.max(initial=0))
        if low < 0 or high > LARGEST_LABEL:
            values.update(np.unique(part).tolist())  # values too large for a table
        else:
            present = np.zeros(high + 1, bool)
            present[part] = True
            values.update(np.flatnonzero(present).tolist())
    return tuple(sorted(values))


def dice(pair: ClassPair) -> float:
    """Return 2 |P and R| / (|P| + |R|). Source: Dice 1945."""
    return 2 * pair.both_voxels / (pair.pred_voxels + pair.ref_voxels)


def iou(pair: ClassPair) -> float:
    """Return |P and R| / |P or R|. Source: Jaccard 1912."""
    return pair.both_voxels / (pair.pred_voxels + pair.ref_voxels - pair.both_voxels)


def volume_error(pair: ClassPair) -> float:
    """Return (|P| - |R|) / |R|; NaN without a reference."""
    return (pair.pred_voxels - pair.ref_voxels) / pair.ref_voxels if pair.ref_voxels else math.nan
