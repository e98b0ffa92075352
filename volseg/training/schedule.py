"""Length of a run and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from volseg.config.schema import TrainConfig
from volseg.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """A run's length: optimizer steps, or seconds of training and validation.

    Attributes:
        max_steps: Steps, or ``None``.
        max_seconds: Seconds, or ``None``.
    """

    max_steps: int | None
    max_seconds: float | None

    @classmethod
    def from_config(cls, config: TrainConfig) -> Budget:
        """Read the budget of a configuration.

        Raises:
            ConfigError: Neither ``max_steps`` nor ``max_minutes`` is set.
        """
        if config.max_steps is None and config.max_minutes is None:
            raise ConfigError(
                "the run has no limit",
                expected="train.max_steps or train.max_minutes",
                hint="add for example train.max_minutes=30",
            )
        return cls(config.max_steps, None if config.max_minutes is None else config.max_minutes * 60)

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return the completed fraction of the run; it ends at 1."""
        if self.max_steps is not None:
            return min(1.0, step / self.max_steps)
        assert self.max_seconds is not None
        return min(1.0, elapsed_s / self.max_seconds)


def learning_rate_factor(progress: float, config: TrainConfig) -> float:
    """Return the factor of the learning rate at some point of a run.

    With AdamW: linear warm-up, then cosine decay to 0 (Loshchilov and Hutter, SGDR, ICLR 2017). With SGD: polynomial
    decay with exponent 0.9 (``PolyLRScheduler`` in MIC-DKFZ/nnUNet v2).

    Args:
        progress: Completed fraction of the run, 0 to 1.
        config: Optimizer, and fraction of the run with a rising rate.

    Returns:
        Factor of the peak learning rate, 0 to 1.
    """
    if config.optimizer == "sgd":
        return float((1 - progress) ** 0.9)
    warmup = config.warmup_fraction
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
