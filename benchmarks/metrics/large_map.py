"""Time and peak memory of the metrics on a whole-body map of many classes, in processes of their own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from metrics import organ_shapes
from shared.measure import cost_of, run_function
from volseg.metrics.scores import case_scores

SPACING_MM = (1.5, 0.8, 0.8)
FULL: dict[str, Any] = {"shape": [600, 512, 512], "classes": 100, "largest": 400_000}
QUICK: dict[str, Any] = {"shape": [60, 96, 96], "classes": 10, "largest": 3_000}


def large_map(quick: bool) -> dict[str, Any]:
    """Make the masks in one process and score them in another, whose memory holds nothing else."""
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "pair.npy")
        run_function(make, {"file": file, **sizes})
        return run_function(score, {"file": file, "classes": sizes["classes"]})


def make(file: str, shape: list[int], classes: int, largest: int) -> dict[str, Any]:
    """Write prediction and reference, ``(2, D, H, W)``."""
    depth, height, width = shape
    pair = organ_shapes.pair(0, (depth, height, width), classes, 300, largest, SPACING_MM)
    np.save(file, np.stack([pair.prediction, pair.reference]))
    return {}


def score(file: str, classes: int) -> dict[str, Any]:
    """Score the masks of a file; return seconds and the peak memory of this process during it."""
    prediction, reference = np.load(file)
    cost, _ = cost_of(lambda: case_scores(prediction, reference, SPACING_MM, range(1, classes + 1)))
    masks_mb = (prediction.nbytes + reference.nbytes) / 1e6
    return {
        "shape": list(reference.shape),
        "classes": classes,
        "seconds": cost.seconds,
        "masks_mb": masks_mb,
        "before_mb": cost.before_bytes / 1e6,
        "peak_mb": cost.peak_bytes / 1e6,
        "peak_over_masks": cost.peak_bytes / 1e6 / masks_mb,
    }
