"""Hausdorff distances, average symmetric surface distance and normalised surface Dice of one class."""

from __future__ import annotations

import numpy as np

from volseg.metrics.pair import Array, ClassPair


def hd95(pair: ClassPair) -> float:
    """Return the 95th percentile of the surface distances, mm, in the definition of ``pair.hd_mode``.

    Source: ``max`` as in MONAI and MetricsReloaded (Maier-Hein, Reinke et al. 2024), ``pooled`` as in MedPy, ``surfel``
    as in DeepMind's surface-distance.
    """
    if pair.hd_mode == "surfel":
        (to_ref, to_pred), (pred_areas, ref_areas) = pair.surfel_distances_mm, pair.surfel_areas_mm2
        return max(_area_percentile(to_ref, pred_areas), _area_percentile(to_pred, ref_areas))
    to_ref, to_pred = pair.border_distances_mm
    if pair.hd_mode == "pooled":
        return float(np.percentile(np.concatenate([to_ref, to_pred]), 95))
    return max(float(np.percentile(to_ref, 95)), float(np.percentile(to_pred, 95)))


def hd(pair: ClassPair) -> float:
    """Return the largest surface distance, mm; between surfels if ``pair.hd_mode`` is ``surfel``."""
    to_ref, to_pred = pair.surfel_distances_mm if pair.hd_mode == "surfel" else pair.border_distances_mm
    return max(float(to_ref.max()), float(to_pred.max()))


def assd(pair: ClassPair) -> float:
    """Return the mean of all border distances in both directions, mm."""
    to_ref, to_pred = pair.border_distances_mm
    return float((to_ref.sum() + to_pred.sum()) / (len(to_ref) + len(to_pred)))


def nsd(pair: ClassPair) -> float:
    """Return the fraction of both surfaces' area that lies within the tolerance of the other surface.

    MetricsReloaded counts border voxels instead of areas, so its values differ.

    Source: Nikolov et al. 2018 (arXiv:1809.04430), "surface Dice at tolerance"; DeepMind's surface-distance.
    """
    (to_ref, to_pred), (pred_areas, ref_areas) = pair.surfel_distances_mm, pair.surfel_areas_mm2
    agreeing = pred_areas[to_ref <= pair.tolerance_mm].sum() + ref_areas[to_pred <= pair.tolerance_mm].sum()
    return float(agreeing / (pred_areas.sum() + ref_areas.sum()))


def _area_percentile(distances: Array, areas: Array, fraction: float = 0.95) -> float:
    """Return the distance within which this fraction of the area lies (DeepMind's robust Hausdorff distance)."""
    order = np.lexsort((areas, distances))
    covered = np.cumsum(areas[order]) / areas.sum()
    index = min(int(np.searchsorted(covered, fraction)), len(distances) - 1)
    return float(distances[order][index])
