"""The metrics of volseg, MONAI, surface-distance and MedPy behind one signature."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from organ_shapes import Pair

from volseg.metrics.scores import case_scores

Scores = dict[str, float]
TOOLS = ("volseg", "monai", "surface-distance", "medpy")


def prepare_libraries() -> None:
    """One thread, quiet, and the two names that surface-distance 0.1 needs and numpy 2 took away."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, value in {"Inf": np.inf, "NaN": np.nan}.items():
        setattr(np, name, value)


def score_volseg(pair: Pair, classes: int, hd_mode: str = "max") -> dict[int, Scores]:
    """Everything that volseg computes, of all classes."""
    found = case_scores(pair.prediction, pair.reference, pair.spacing_mm, range(1, classes + 1), hd_mode=hd_mode)  # type: ignore[arg-type]
    return {k: {key: float(s[key]) for key in ("dice", "hd95", "nsd")} for k, s in found.items()}  # type: ignore[literal-required]


def score_monai(pair: Pair, classes: int) -> dict[int, Scores]:
    """HD95 alone, class by class."""
    import torch
    from monai.metrics import compute_hausdorff_distance

    scores = {}
    for k in range(1, classes + 1):
        pred, ref = (torch.from_numpy(labels == k)[None, None] for labels in (pair.prediction, pair.reference))
        spacing = list(pair.spacing_mm)
        hd95 = compute_hausdorff_distance(pred, ref, include_background=True, percentile=95, spacing=spacing)
        scores[k] = {"hd95": float(hd95)}
    return scores


def score_surface_distance(pair: Pair, classes: int) -> dict[int, Scores]:
    """Dice, HD95 and NSD at 1 mm, class by class."""
    import surface_distance

    scores = {}
    for k in range(1, classes + 1):
        pred, ref = pair.prediction == k, pair.reference == k
        distances = surface_distance.compute_surface_distances(ref, pred, pair.spacing_mm)
        scores[k] = {
            "dice": float(surface_distance.compute_dice_coefficient(ref, pred)),
            "hd95": float(surface_distance.compute_robust_hausdorff(distances, 95)),
            "nsd": float(surface_distance.compute_surface_dice_at_tolerance(distances, 1.0)),
        }
    return scores


def score_medpy(pair: Pair, classes: int) -> dict[int, Scores]:
    """Dice and HD95, class by class."""
    from medpy.metric import binary

    scores = {}
    for k in range(1, classes + 1):
        pred, ref = pair.prediction == k, pair.reference == k
        scores[k] = {"dice": float(binary.dc(pred, ref)), "hd95": float(binary.hd95(pred, ref, pair.spacing_mm))}
    return scores


SCORERS: dict[str, Callable[[Pair, int], dict[int, Scores]]] = {
    "monai": score_monai,
    "surface-distance": score_surface_distance,
    "medpy": score_medpy,
}
SAME_DEFINITION = {"monai": "max", "surface-distance": "surfel", "medpy": "pooled"}
COMPUTES = {
    "volseg": "Dice, IoU, HD95, HD, ASSD, NSD, volume error",
    "monai": "HD95",
    "surface-distance": "Dice, HD95, NSD",
    "medpy": "Dice, HD95",
}
