"""How a scan is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Settings of a prediction.

    Attributes:
        tta: Average over mirrored copies along the plan's mirror axes.
        skip_air: Leave out windows of nothing but air, where the plan allows it.
        max_memory_bytes: Bound of what is held beyond the model, the scan as stored and the mask.
    """

    tta: bool = False
    skip_air: bool = True
    max_memory_bytes: int = 4_000_000_000
