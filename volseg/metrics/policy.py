"""What a score is when the reference, the prediction or both hold nothing of a class.

| reference | prediction | status       | overlap and NSD | distances              |
|-----------|------------|--------------|-----------------|------------------------|
| yes       | yes        | `ok`         | computed        | computed               |
| yes       | no         | `missed`     | 0               | diagonal of the image  |
| no        | yes        | `spurious`   | 0               | diagonal of the image  |
| no        | no         | `both_empty` | not defined     | not defined            |

"Not defined" is NaN: it enters no mean and is counted. A missed organ must cost: were its distance left out, a model
that finds fewer organs would score better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np

Status = Literal["ok", "missed", "spurious", "both_empty"]
STATUSES: tuple[Status, ...] = ("ok", "missed", "spurious", "both_empty")


class ClassScores(TypedDict):
    """Scores of one class in one case; NaN where a score is not defined.

    Attributes:
        dice: Dice coefficient, 0 to 1.
        iou: Intersection over union, 0 to 1.
        hd95: 95th percentile of the surface distances, mm.
        hd: Largest surface distance, mm.
        assd: Average symmetric surface distance, mm.
        nsd: Normalised surface Dice at the tolerance, 0 to 1.
        volume_error: (predicted - reference) / reference volume; NaN without a reference.
        pred_voxels: Voxels of the class in the prediction.
        ref_voxels: Voxels of the class in the reference.
        status: ``ok``, ``missed``, ``spurious`` or ``both_empty``.
    """

    dice: float
    iou: float
    hd95: float
    hd: float
    assd: float
    nsd: float
    volume_error: float
    pred_voxels: int
    ref_voxels: int
    status: Status


def status_of(pred_size: int, ref_size: int) -> Status:
    """Name of the situation, from the number of elements on both sides."""
    if ref_size:
        return "ok" if pred_size else "missed"
    return "spurious" if pred_size else "both_empty"


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the diagonal of the image: the distance given to a missed or spurious organ."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))
