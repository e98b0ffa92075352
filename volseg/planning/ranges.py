"""What the training scans were like, and how a new scan differs from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from volseg.errors import ConfigError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.planning.channel import ChannelIntensity
from volseg.planning.fields import boolean, check_keys, number, sequence
from volseg.planning.fingerprint import CaseFingerprint, Range, channel_range

FACTOR = 2.0
"""A spacing or field of view this many times below or above those of all training scans is unusual."""
WIDENED = 0.25
"""By this share of its width the range of the training scans' values is widened before others count as unusual."""
CONTRAST_FACTOR = 3.0
"""A range of values this many times narrower or wider than those of all training scans is unusual."""


@dataclass(frozen=True, kw_only=True)
class ScanRanges:
    """Smallest and largest value over the training scans; axes are ordered (R, A, S).

    Attributes:
        spacing_mm: Voxel size along each axis.
        extent_mm: Field of view along each axis.
        low: 0.5 percentile of each channel's values.
        high: 99.5 percentile of each channel's values.
        identity_affine: Whether some training scan has an identity affine.
    """

    spacing_mm: tuple[Range, ...]
    extent_mm: tuple[Range, ...]
    low: tuple[Range, ...]
    high: tuple[Range, ...]
    identity_affine: bool

    @classmethod
    def of(cls, cases: Sequence[CaseFingerprint]) -> ScanRanges | None:
        """Return the ranges of measured cases; ``None`` if their values were not measured."""
        if not all(case.ranges for case in cases):
            return None
        spacings = np.array([case.spacing_mm for case in cases])
        values = np.array([case.ranges for case in cases])  # (cases, C, 2)
        return cls(
            spacing_mm=_ranges(spacings),
            extent_mm=_ranges(spacings * np.array([case.shape for case in cases])),
            low=_ranges(values[:, :, 0]),
            high=_ranges(values[:, :, 1]),
            identity_affine=any(case.identity_affine for case in cases),
        )

    @classmethod
    def from_dict(cls, key: str, values: Any) -> ScanRanges:
        """Read ranges from plain values; ``key`` names them in messages."""
        pairs = sequence(sequence(number, 2))
        read: dict[str, Callable[[str, Any], Any]] = {field.name: pairs for field in fields(cls)}
        read["spacing_mm"] = read["extent_mm"] = sequence(sequence(number, 2), 3)
        read["identity_affine"] = boolean
        if not isinstance(values, Mapping):
            raise ConfigError(f"{key} is not a mapping", found=repr(values))
        check_keys(values, list(read), key)
        missing = [name for name in read if name not in values]
        if missing:
            raise ConfigError(f"{key}.{missing[0]} is missing", expected=", ".join(read))
        return cls(**{name: read[name](f"{key}.{name}", value) for name, value in values.items()})


def unusual(volume: Volume, ranges: ScanRanges, intensity: Sequence[ChannelIntensity]) -> list[str]:
    """Compare a scan with the training scans.

    Values are compared for channels with a fixed scale (CT); a z-score does not depend on the scale.

    Args:
        volume: The scan (C, D, H, W).
        ranges: Those of the training scans.
        intensity: Normalisation of each channel.

    Returns:
        A sentence with both values for everything that is far from all training scans; none if nothing is.
    """
    return [*_unusual_grid(volume.grid, ranges), *_unusual_values(volume, ranges, intensity)]


def _unusual_grid(grid: Grid, ranges: ScanRanges) -> Iterator[str]:
    if np.array_equal(grid.affine, np.eye(4)) and not ranges.identity_affine:
        yield "the affine is the identity: voxel size and directions were probably lost; no training scan has that"
    anatomical = ["RLAPSI".index(code) // 2 for code in grid.orientation]
    for axis in range(3):
        code, own = "RAS"[axis], anatomical.index(axis)
        spacing = grid.spacing_mm[own]
        for name, value, known in (
            ("voxel size", spacing, ranges.spacing_mm[axis]),
            ("field of view", spacing * grid.shape[own], ranges.extent_mm[axis]),
        ):
            if not known[0] / FACTOR <= value <= known[1] * FACTOR:
                yield f"{name} along {code}: {value:.4g} mm; training scans: {_text(known)} mm"


def _unusual_values(volume: Volume, ranges: ScanRanges, intensity: Sequence[ChannelIntensity]) -> Iterator[str]:
    for index, (channel, rule) in enumerate(zip(volume.data, intensity, strict=True)):
        if rule.rule != "ct":
            continue
        low, high = channel_range(channel)
        known_low, known_high = ranges.low[index], ranges.high[index]
        shifted = _outside(low, known_low, known_high) and _outside(high, known_low, known_high, upper=True)
        narrowest, widest = known_high[0] - known_low[1], known_high[1] - known_low[0]
        contrast = high - low
        scaled = not narrowest / CONTRAST_FACTOR <= contrast <= widest * CONTRAST_FACTOR
        unsigned = float(channel.min()) >= 0 > known_low[1]
        if shifted or scaled or unsigned:
            yield (
                f"values of channel {index}: 0.5 percentile {low:.4g} (training scans: {_text(known_low)}), "
                f"99.5 percentile {high:.4g} (training scans: {_text(known_high)}); CT must be in Hounsfield units"
            )


def _outside(value: float, low: Range, high: Range, *, upper: bool = False) -> bool:
    """Return whether a percentile lies outside its range over the training scans, widened."""
    margin = WIDENED * (high[1] - low[0])
    known = high if upper else low
    return not known[0] - margin <= value <= known[1] + margin


def _ranges(values: np.ndarray) -> tuple[Range, ...]:
    """Return the smallest and largest value of each column."""
    extremes = zip(values.min(axis=0), values.max(axis=0), strict=True)
    return tuple((round(float(low), 4), round(float(high), 4)) for low, high in extremes)


def _text(known: Range) -> str:
    return f"{known[0]:.4g}" if known[0] == known[1] else f"{known[0]:.4g} to {known[1]:.4g}"
