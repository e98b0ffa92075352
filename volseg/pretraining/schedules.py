"""Schedules of pretraining over the completed fraction of a run, 0 to 1.

Source: Oquab et al. 2023, "DINOv2"; ``ssl_default_config.yaml`` of facebookresearch/dinov2, with 100 epochs as 1.
"""

from __future__ import annotations

import math

FIRST_TEMPERATURE = 0.04
TEMPERATURE_WARMUP = 0.3
"""Part of a run during which the teacher's temperature rises."""
FROZEN_LAST_LAYER = 0.01
"""Part of a run during which the prototypes do not move."""


def cosine(start: float, end: float, spent: float) -> float:
    """Return a value that goes from ``start`` to ``end`` along half a cosine."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * spent))


def teacher_momentum(start: float, spent: float) -> float:
    """Return the decay of the teacher's average, which reaches 1 at the end."""
    return cosine(start, 1.0, spent)


def teacher_temperature(end: float, spent: float) -> float:
    """Return the temperature of the teacher's assignments: a linear rise, then the final value."""
    return FIRST_TEMPERATURE + (end - FIRST_TEMPERATURE) * min(1.0, spent / TEMPERATURE_WARMUP)


def last_layer_moves(spent: float) -> bool:
    """Return whether the prototypes are trained already."""
    return spent >= FROZEN_LAST_LAYER
