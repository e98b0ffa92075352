"""Intensity normalisation: clip, subtract the mean, divide by the standard deviation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.planning.channel import ChannelIntensity

ZSCORE_PERCENTILES = (0.5, 99.5)
"""Percentiles at which a z-scored channel is clipped, so that bright vessels and spikes do not set the scale."""
SLAB_VOXELS = 1 << 22
"""Voxels that are measured at a time, so that no float copy of a case is needed."""
_SIGN = np.uint32(0x80000000)
_HALF = 1 << 16  # number of values of the upper, and of the lower, 16 bits of a float32


@dataclass(frozen=True)
class Scaling:
    """Normalisation of one channel of one case: clip to (low, high), subtract the mean, divide by ``std``.

    Attributes:
        low: Lower clip.
        high: Upper clip.
        mean: Mean of the clipped values.
        std: Their standard deviation.
        nonzero: Keep voxels that are exactly 0.
    """

    low: float
    high: float
    mean: float
    std: float
    nonzero: bool = False

    def apply(self, channel: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise ``(D, H, W)`` of any real type; the input is not changed."""
        scaled: NDArray[np.float32] = channel.astype(np.float32)
        np.clip(scaled, self.low, self.high, out=scaled)
        scaled -= np.float32(self.mean)
        scaled /= np.float32(max(self.std, 1e-8))
        if self.nonzero:
            scaled[channel == 0] = 0
        return scaled


def scalings(data: NDArray[Any], intensity: Sequence[ChannelIntensity]) -> tuple[Scaling, ...]:
    """Return the scaling of each channel: from the data set for CT, from the case for a z-score.

    Args:
        data: (C, D, H, W), any real type.
        intensity: One rule per channel.
    """
    return tuple(_scaling(channel, rule) for channel, rule in zip(data, intensity, strict=True))


def _scaling(channel: NDArray[Any], rule: ChannelIntensity) -> Scaling:
    """Return the scaling of a channel (D, H, W)."""
    if rule.rule == "ct":
        return Scaling(*_numbers(rule))
    if rule.rule == "zscore":
        return case_scaling(channel, rule.nonzero)
    if rule.rule == "rescale":
        low, high = float(channel.min()), float(channel.max())
        return Scaling(low, high, low, high - low)
    return Scaling(-math.inf, math.inf, 0, 255 if rule.rule == "rgb" else 1)


def normalize(data: NDArray[Any], scaling: Sequence[Scaling]) -> NDArray[np.float32]:
    """Normalise every channel of ``(C, D, H, W)``, a whole case or some of its slices."""
    result = np.empty(data.shape, dtype=np.float32)
    for channel, channel_scaling, out in zip(data, scaling, result, strict=True):
        np.copyto(out, channel_scaling.apply(channel))
    return result


def _numbers(rule: ChannelIntensity) -> tuple[float, float, float, float]:
    numbers = (rule.clip_low, rule.clip_high, rule.mean, rule.std)
    low, high, mean, std = (value for value in numbers if value is not None)
    return low, high, mean, std


def case_scaling(channel: NDArray[Any], nonzero: bool) -> Scaling:
    """Compute percentiles, mean and standard deviation of a channel exactly, without a float copy of it.

    Args:
        channel: (D, H, W), any real type, finite.
        nonzero: Measure only voxels that are not exactly 0.
    """
    ranks = _Ranks(channel, nonzero)
    if ranks.count == 0:
        return Scaling(0, 0, 0, 1, nonzero)
    low, high = (ranks.percentile(percent) for percent in ZSCORE_PERCENTILES)
    counts, means, squares = [], [], []
    for values in _measured(channel, nonzero):
        clipped = np.clip(values, low, high)
        counts.append(clipped.size)
        means.append(float(clipped.mean(dtype=np.float64)))
        squares.append(float(clipped.var(dtype=np.float64)) * clipped.size)
    mean = float(np.average(means, weights=counts))
    spread = sum(squares) + float(np.dot(counts, (np.array(means) - mean) ** 2))  # within the slabs and between them
    return Scaling(low, high, mean, math.sqrt(spread / ranks.count), nonzero)


def _measured(channel: NDArray[Any], nonzero: bool) -> Iterator[NDArray[np.float32]]:
    """Yield the measured voxels (N,) as float32, slab by slab; empty slabs are skipped."""
    step = max(1, SLAB_VOXELS // max(1, channel[0].size))
    for start in range(0, len(channel), step):
        slab = channel[start : start + step]
        values = (slab[slab != 0] if nonzero else slab.ravel()).astype(np.float32)
        if values.size:
            yield values


class _Ranks:
    """Order statistics of a channel by counting sort, first on the upper, then on the lower 16 bits of each float32.

    Attributes:
        count: Measured voxels.
    """

    def __init__(self, channel: NDArray[Any], nonzero: bool) -> None:
        self._channel, self._nonzero = channel, nonzero
        self._buckets: dict[int, NDArray[np.int64]] = {}
        self._upper = np.zeros(_HALF, np.int64)
        for values in _measured(channel, nonzero):
            self._upper += np.bincount(_sortable(values) >> 16, minlength=_HALF)
        self.count = int(self._upper.sum())

    def percentile(self, percent: float) -> float:
        """Return a percentile as ``numpy.percentile``, with linear interpolation."""
        at = percent / 100 * (self.count - 1)
        below = math.floor(at)
        low, high = self._value(below), self._value(min(below + 1, self.count - 1))
        return low + (high - low) * (at - below)

    def _value(self, rank: int) -> float:
        """Return the value at a rank, counted from 0."""
        ends = np.cumsum(self._upper)
        bucket = int(np.searchsorted(ends, rank, side="right"))
        before = int(ends[bucket - 1]) if bucket else 0
        key = bucket << 16 | int(np.searchsorted(self._bucket_ends(bucket), rank - before, side="right"))
        bits = key ^ int(_SIGN) if key & int(_SIGN) else ~key & 0xFFFFFFFF
        return float(np.array(bits, np.uint32).view(np.float32))

    def _bucket_ends(self, bucket: int) -> NDArray[np.int64]:
        """Return the cumulative count, by lower 16 bits, of the voxels with these upper 16 bits."""
        if bucket not in self._buckets:
            lower = np.zeros(_HALF, np.int64)
            for values in _measured(self._channel, self._nonzero):
                keys = _sortable(values)
                lower += np.bincount(keys[keys >> 16 == bucket] & (_HALF - 1), minlength=_HALF)
            self._buckets[bucket] = np.cumsum(lower)
        return self._buckets[bucket]


def _sortable(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Map floats (N,) to unsigned integers of the same order."""
    bits = values.view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint32, copy=False)
