"""Status of a class in a case, and its scores where the reference, the prediction or both are empty.

| reference | prediction | status       | overlap and NSD | distances             |
|-----------|------------|--------------|-----------------|-----------------------|
| yes       | yes        | `ok`         | computed        | computed              |
| yes       | no         | `missed`     | 0               | diagonal of the image |
| no        | yes        | `spurious`   | 0               | diagonal of the image |
| no        | no         | `both_empty` | not defined     | not defined           |

"Not defined" is NaN: means exclude it, and the summary counts it. A missed organ gets the diagonal because skipping its
distance would give a better mean to a model that detects fewer organs.

Surface metrics apply the table to their own elements, border voxels or surfels. Next to ignored voxels a class can have
voxels without a border, or borders without a surfel (a single annotated slice between ignored ones).
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
    """Return the length of the image's diagonal, mm: the distance assigned to a missed or spurious class."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))
