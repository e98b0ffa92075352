"""The metrics of volseg, MONAI, surface-distance and MedPy behind one signature."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metrics.organ_shapes import Pair
from volseg.metrics.scores import case_scores
from volseg.metrics.table import METRIC, METRICS

Scores = dict[str, float]
Bools = NDArray[np.bool_]
TOOLS = ("volseg", "monai", "surface-distance", "medpy")
SHARED = ("dice", "hd95", "nsd")
"""Metrics that more than one tool computes."""
TOLERANCE_MM = 1.0


def prepare_libraries() -> None:
    """Set one thread, silence warnings and define the two names that surface-distance 0.1 needs and numpy 2 removed."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, value in {"Inf": np.inf, "NaN": np.nan}.items():
        setattr(np, name, value)


def score_volseg(pair: Pair, classes: int, hd_mode: str = "max") -> dict[int, Scores]:
    """Return the scores of all classes; volseg computes all its metrics."""
    scores = case_scores(pair.prediction, pair.reference, pair.spacing_mm, range(1, classes + 1), hd_mode=hd_mode)
    return {k: {name: float(of_class[name]) for name in SHARED} for k, of_class in scores.items()}


def monai_metrics(pred: Bools, ref: Bools, spacing_mm: tuple[float, ...]) -> dict[str, Callable[[], Any]]:
    """Return MONAI's metrics of a pair of masks, to be called."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    tensors = [torch.from_numpy(mask)[None, None] for mask in (pred, ref)]
    common: dict[str, Any] = {"include_background": True, "spacing": list(spacing_mm)}
    return {
        "dice": lambda: compute_dice(*tensors),
        "hd95": lambda: compute_hausdorff_distance(*tensors, percentile=95, **common),
        "nsd": lambda: compute_surface_dice(*tensors, [TOLERANCE_MM], **common, use_subvoxels=True),
    }


def surface_distance_metrics(pred: Bools, ref: Bools, spacing_mm: tuple[float, ...]) -> dict[str, Callable[[], Any]]:
    """Return DeepMind's metrics of a pair of masks, to be called; the distances are computed once."""
    import surface_distance

    distances = surface_distance.compute_surface_distances(ref, pred, spacing_mm)
    return {
        "dice": lambda: surface_distance.compute_dice_coefficient(ref, pred),
        "hd95": lambda: surface_distance.compute_robust_hausdorff(distances, 95),
        "nsd": lambda: surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM),
    }


def medpy_metrics(pred: Bools, ref: Bools, spacing_mm: tuple[float, ...]) -> dict[str, Callable[[], Any]]:
    """Return MedPy's metrics of a pair of masks, to be called; it has no NSD."""
    from medpy.metric import binary

    return {"dice": lambda: binary.dc(pred, ref), "hd95": lambda: binary.hd95(pred, ref, spacing_mm)}


PEERS: dict[str, Callable[[Bools, Bools, tuple[float, ...]], dict[str, Callable[[], Any]]]] = {
    "monai": monai_metrics,
    "surface-distance": surface_distance_metrics,
    "medpy": medpy_metrics,
}
TIMED = {"monai": ("hd95",), "surface-distance": SHARED, "medpy": ("dice", "hd95")}
"""Metrics of each peer whose time is measured."""
SAME_DEFINITION = {"monai": "max", "surface-distance": "surfel", "medpy": "pooled"}
"""volseg's ``hd_mode`` with each peer's definition of HD95."""
COMPUTES = {"volseg": ", ".join(metric.title for metric in METRICS)} | {
    tool: ", ".join(METRIC[name].title for name in names) for tool, names in TIMED.items()
}


def score_peer(tool: str, pair: Pair, classes: int) -> dict[int, Scores]:
    """Return the timed metrics of another tool, class by class."""
    scores = {}
    for k in range(1, classes + 1):
        metrics = PEERS[tool](pair.prediction == k, pair.reference == k, pair.spacing_mm)
        scores[k] = {name: float(metrics[name]()) for name in TIMED[tool]}
    return scores
