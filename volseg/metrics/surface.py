"""Hausdorff distances, average surface distance and normalised surface Dice of one class."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from volseg.metrics.nearest import nearest_distances_mm
from volseg.metrics.policy import status_of
from volseg.metrics.surfaces import Surface

HdMode = Literal["max", "pooled", "surfel"]
HD_MODES: tuple[str, ...] = get_args(HdMode)
Array = NDArray[np.float64]


class SurfaceScores(NamedTuple):
    """hd95, hd, assd in mm; nsd 0 to 1."""

    hd95: float
    hd: float
    assd: float
    nsd: float


def surface_scores(
    pred: Surface,
    ref: Surface,
    spacing_mm: tuple[float, float, float],
    areas_mm2: Array,
    diagonal_mm: float,
    hd_mode: HdMode = "max",
    tolerance_mm: float = 1.0,
) -> SurfaceScores:
    """All surface scores of one class; each kind of border and its distances are computed once.

    Args:
        pred: Predicted surface.
        ref: Reference surface.
        spacing_mm: Voxel size along the three axes.
        areas_mm2: Area of each surfel code, shape (256,).
        diagonal_mm: The distance given when one of the surfaces does not exist.
        hd_mode: Which borders and percentile HD95 is taken of.
        tolerance_mm: Distance up to which surfels count as agreeing.
    """
    status = status_of(len(pred.voxels), len(ref.voxels))
    if status == "both_empty":
        return SurfaceScores(math.nan, math.nan, math.nan, math.nan)
    if status != "ok":
        return SurfaceScores(diagonal_mm, diagonal_mm, diagonal_mm, 0.0)
    to_ref = nearest_distances_mm(pred.voxels, ref.voxels, spacing_mm)
    to_pred = nearest_distances_mm(ref.voxels, pred.voxels, spacing_mm)
    assd = float((to_ref.sum() + to_pred.sum()) / (len(to_ref) + len(to_pred)))

    limit = math.inf if hd_mode == "surfel" else tolerance_mm  # for NSD alone, farther distances are not needed
    surfels_to_ref = nearest_distances_mm(pred.surfels, ref.surfels, spacing_mm, limit)
    surfels_to_pred = nearest_distances_mm(ref.surfels, pred.surfels, spacing_mm, limit)
    pred_areas, ref_areas = areas_mm2[pred.codes], areas_mm2[ref.codes]
    nsd = _agreeing_fraction(surfels_to_ref, pred_areas, surfels_to_pred, ref_areas, tolerance_mm)

    if hd_mode == "surfel":
        hd95 = max(_area_percentile(surfels_to_ref, pred_areas), _area_percentile(surfels_to_pred, ref_areas))
        hd = max(float(surfels_to_ref.max()), float(surfels_to_pred.max()))
    elif hd_mode == "pooled":
        hd95 = float(np.percentile(np.concatenate([to_ref, to_pred]), 95))
        hd = max(float(to_ref.max()), float(to_pred.max()))
    else:
        hd95 = max(float(np.percentile(to_ref, 95)), float(np.percentile(to_pred, 95)))
        hd = max(float(to_ref.max()), float(to_pred.max()))
    return SurfaceScores(hd95, hd, assd, nsd)


def _agreeing_fraction(
    to_ref: Array, pred_areas: Array, to_pred: Array, ref_areas: Array, tolerance_mm: float
) -> float:
    """Share of both surfaces that lies within the tolerance of the other one.

    Source: Nikolov et al. 2018 (arXiv:1809.04430), "surface Dice at tolerance".
    """
    agreeing = pred_areas[to_ref <= tolerance_mm].sum() + ref_areas[to_pred <= tolerance_mm].sum()
    total = pred_areas.sum() + ref_areas.sum()
    return float(agreeing / total) if total else math.nan


def _area_percentile(distances: Array, areas: Array, fraction: float = 0.95) -> float:
    """Smallest distance that this fraction of the area does not exceed (DeepMind's robust Hausdorff distance)."""
    order = np.lexsort((areas, distances))
    covered = np.cumsum(areas[order]) / areas.sum()
    place = min(int(np.searchsorted(covered, fraction)), len(distances) - 1)
    return float(distances[order][place])
