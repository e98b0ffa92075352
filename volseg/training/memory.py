"""Memory of a training step, and the limit of it that a plan keeps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from volseg.config.schema import Config
from volseg.models.contracts import NetworkPlan
from volseg.models.memory import TrainingMemory, training_memory
from volseg.planning.budget import MemoryBudget
from volseg.planning.plan import Plan
from volseg.planning.settings import PlanSettings
from volseg.training.losses import SegmentationLoss


def step_memory(config: Config, plan: NetworkPlan, batch_size: int) -> TrainingMemory:
    """Estimate the memory of a training step of a configuration.

    Args:
        config: The configuration.
        plan: The plan.
        batch_size: Patches per step.

    Raises:
        ConfigError: The settings do not fit each other.
    """
    settings = config.train
    loss = SegmentationLoss(settings.loss, batch_dice=settings.batch_dice, region_indices=plan.region_indices)
    loss.to("meta")

    def of_levels(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        total: Tensor = loss(outputs if settings.deep_supervision else outputs[:1], target)
        return total

    return training_memory(config.model, plan, batch_size, of_levels)


def network_name(config: Config) -> str:
    """Return the network in words: ``dinov2_s14 (full)``."""
    model = config.model
    if model.baseline is not None or model.encoder == "identity":
        return model.baseline or model.encoder
    return f"{model.encoder} ({model.adaptation})"


def memory_budget(config: Config, settings: PlanSettings) -> MemoryBudget | None:
    """Return the limit of memory that a plan must keep with the network of a configuration, if there is one."""
    if settings.memory_bytes is None:
        return None
    return MemoryBudget(
        limit_bytes=settings.memory_bytes, training_bytes=partial(_bytes, config), network=network_name(config)
    )


def _bytes(config: Config, plan: Plan) -> int:
    return step_memory(config, plan, plan.batch_size).total
