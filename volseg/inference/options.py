"""How a scan is predicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """tta: average over mirrored copies; skip_air: leave out windows of nothing but air where the plan allows it;
    max_memory_bytes: bound of what is held beyond model, scan and mask."""

    tta: bool = False
    skip_air: bool = True
    max_memory_bytes: int = 4_000_000_000
