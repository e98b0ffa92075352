"""Normalisation of intensities: clip, subtract, divide. No second normalisation follows anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.planning.plan import ChannelIntensity

ZSCORE_PERCENTILES = (0.5, 99.5)
"""Where a z-scored channel is clipped: bright vessels and spikes of MRI would otherwise set the scale."""


def normalize(data: NDArray[Any], intensity: Sequence[ChannelIntensity]) -> NDArray[np.float32]:
    """Clips and z-scores every channel.

    Args:
        data: (C, D, H, W), any real type; not changed.
        intensity: One rule for each channel.

    Returns:
        (C, D, H, W) float32. Where a rule measures nonzero voxels only, voxels that are exactly 0 stay 0.
    """
    result = np.empty(data.shape, dtype=np.float32)
    for channel, rule, out in zip(data, intensity, result, strict=True):
        if rule.rule == "ct":
            np.copyto(out, _scaled(channel, *_numbers(rule)))
        else:
            _zscore(channel, rule.nonzero, out)
    return result


def _numbers(rule: ChannelIntensity) -> tuple[float, float, float, float]:
    numbers = (rule.clip_low, rule.clip_high, rule.mean, rule.std)
    low, high, mean, std = (value for value in numbers if value is not None)
    return low, high, mean, std


def _zscore(channel: NDArray[Any], nonzero: bool, out: NDArray[np.float32]) -> None:
    """Writes the z-scored (D, H, W) channel into ``out``, by the case's own statistics."""
    measured = (channel[channel != 0] if nonzero else channel).astype(np.float32)
    if measured.size == 0:
        out.fill(0)
        return
    low, high = np.percentile(measured, ZSCORE_PERCENTILES)
    clipped = np.clip(measured, low, high)
    scaled = _scaled(
        channel, float(low), float(high), float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))
    )
    np.copyto(out, np.where(channel != 0, scaled, 0) if nonzero else scaled)


def _scaled(channel: NDArray[Any], low: float, high: float, mean: float, std: float) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = channel.astype(np.float32)
    np.clip(scaled, low, high, out=scaled)
    scaled -= np.float32(mean)
    scaled /= np.float32(max(std, 1e-8))
    return scaled
