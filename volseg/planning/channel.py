"""The intensity normalisation of a channel, as the plan stores it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from volseg.errors import ConfigError
from volseg.planning.fields import boolean, check_keys, number, optional, text
from volseg.planning.fingerprint import IntensityStatistics

RULES = ("ct", "zscore", "rescale", "rgb", "none")
RULE_OF_NAME = {
    "ct": "ct",
    "nonorm": "none",
    "rescale_0_1": "rescale",
    "rescale_to_0_1": "rescale",
    "rgb_to_0_1": "rgb",
}
"""Names of channels that state their normalisation, lower case."""


@dataclass(frozen=True, kw_only=True)
class ChannelIntensity:
    """Normalisation of a channel: ``(clip(x, low, high) - mean) / std``.

    Attributes:
        rule: ``ct`` uses the four numbers below, measured on the training foreground (HU); ``zscore`` uses the 0.5 and
            99.5 percentiles, mean and standard deviation of each case; ``rescale`` maps the smallest and the largest
            value of each case to 0 and 1; ``rgb`` divides by 255; ``none`` keeps the values.
        nonzero: ``zscore`` only: measure and normalise only voxels that are not exactly 0.
        clip_low: 0.5 percentile of the foreground.
        clip_high: 99.5 percentile of the foreground.
        mean: Mean of the foreground.
        std: Standard deviation of the foreground, > 0.
    """

    rule: str
    nonzero: bool = False
    clip_low: float | None = None
    clip_high: float | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        numbers = (self.clip_low, self.clip_high, self.mean, self.std)
        if self.rule not in RULES:
            raise ConfigError("plan.intensity has no such rule", found=self.rule, expected=", ".join(RULES))
        if self.rule == "ct" and (None in numbers or self.std == 0 or self.clip_low == self.clip_high):
            raise ConfigError(
                "plan.intensity of rule ct is incomplete",
                found=asdict(self),
                expected="clip_low < clip_high, mean and std > 0",
            )

    @classmethod
    def of_channel(cls, name: str, statistics: IntensityStatistics, *, nonzero: bool) -> ChannelIntensity:
        """Return the normalisation that the name of a channel states, as in nnU-Net; other names mean ``zscore``.

        Args:
            name: ``CT``, ``noNorm``, ``zscore``, ``rescale_0_1`` (or ``rescale_to_0_1``), ``rgb_to_0_1``, or any other.
            statistics: Those of the foreground of the data set.
            nonzero: Measure a z-score on nonzero voxels only.

        Source: nnU-Net v2, ``channel_name_to_normalization_mapping``.
        """
        rule = RULE_OF_NAME.get(name.strip().lower(), "zscore")
        return cls.ct(statistics) if rule == "ct" else cls(rule=rule, nonzero=nonzero and rule == "zscore")

    @classmethod
    def ct(cls, statistics: IntensityStatistics) -> ChannelIntensity:
        """Return the CT rule with the statistics of the foreground."""
        return cls(
            rule="ct",
            clip_low=round(statistics.percentile_00_5, 4),
            clip_high=round(statistics.percentile_99_5, 4),
            mean=round(statistics.mean, 4),
            std=round(statistics.std, 4),
        )

    @classmethod
    def from_dict(cls, key: str, values: Any) -> ChannelIntensity:
        """Read a normalisation from plain values; ``key`` names it in messages."""
        read: dict[str, Callable[[str, Any], Any]] = dict.fromkeys(
            ("clip_low", "clip_high", "mean", "std"), optional(number)
        )
        read |= {"rule": text, "nonzero": boolean}
        if not isinstance(values, Mapping):
            raise ConfigError(f"{key} is not a mapping", found=repr(values))
        check_keys(values, [field.name for field in fields(cls)], key)
        if "rule" not in values:
            raise ConfigError(f"{key}.rule is missing", expected=", ".join(RULES))
        return cls(**{name: read[name](f"{key}.{name}", value) for name, value in values.items()})
