"""How a scan is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Settings of a prediction.

    Attributes:
        tta: Average over mirrored copies along the plan's mirror axes.
        skip_air: Leave out windows of nothing but air, where the plan allows it.
        max_memory_bytes: Bound of what is held beyond the model, the scan as stored and the mask. ``None`` takes 4 GB,
            or as little as possible where that is not enough; a bound that is given is never exceeded knowingly.
    """

    tta: bool = False
    skip_air: bool = True
    max_memory_bytes: int | None = None
