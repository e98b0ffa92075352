"""Which masks are empty, and the score of a class that the reference, the prediction or both do not have.

| reference | prediction | status       | overlap and NSD | distances             |
|-----------|------------|--------------|-----------------|-----------------------|
| yes       | yes        | `ok`         | computed        | computed              |
| yes       | no         | `missed`     | 0               | diagonal of the image |
| no        | yes        | `spurious`   | 0               | diagonal of the image |
| no        | no         | `both_empty` | not defined     | not defined           |

"Not defined" is NaN: it enters no mean and is counted. A missed organ must cost: if its distance were left out, a model
that finds fewer organs would score better.

Surface metrics apply the table to what they measure, border voxels or surfels. Beside ignored voxels a class can have
voxels and no visible border, or borders and no surfel (a single annotated slice between ignored ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Status = Literal["ok", "missed", "spurious", "both_empty"]
STATUSES: tuple[Status, ...] = ("ok", "missed", "spurious", "both_empty")


def status_of(pred_size: int, ref_size: int) -> Status:
    """Return the status from the number of elements in prediction and reference."""
    if ref_size:
        return "ok" if pred_size else "missed"
    return "spurious" if pred_size else "both_empty"


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Return the length of the image's diagonal, mm: the distance given to a missed or spurious organ."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))
