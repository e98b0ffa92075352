"""Memory of a training step, and the limit of it that a plan keeps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import Enum
from functools import partial

import torch
from torch import Tensor

from volseg.config.schema import Config
from volseg.config.sizes import format_size
from volseg.device import choose_device, free_memory, total_memory, training_dtype
from volseg.errors import ConfigError
from volseg.heap import return_freed_memory
from volseg.models.contracts import NetworkPlan
from volseg.models.memory import TrainingMemory, training_memory
from volseg.planning.budget import MemoryBudget
from volseg.planning.plan import Plan
from volseg.planning.settings import PlanSettings
from volseg.training.losses import SegmentationLoss
from volseg.training.ranks import ALONE, Ranks, share_of_batch
from volseg.training.replay import choose_graphs

logger = logging.getLogger(__name__)

HEAP_FACTOR = 2.4
"""Resident memory of a process on a CPU that keeps freed memory, as a multiple of the estimate, with a margin.

Source: `benchmarks/results/training_memory/estimate.md`, settings from half a gigabyte on: 1.14 to 2.09.
"""
ERROR_FACTOR = 1.1
"""Largest measured resident memory where freed memory is returned, as a multiple of the estimate; 1.05 was measured."""
GPU_MEMORY_BYTES = 8 * 10**9
"""Memory of a training step for which patch and batch are planned on a GPU, where no limit is stated.

Source: nnU-Net 2.8.1, ``ExperimentPlanner``, ``gpu_memory_target_in_gb``. It is the same for all cards, so that the
plan does not depend on the card.
"""
SAVE_HINT = (
    "to need less: train.batch_size=1 with train.accumulate, plan.memory=SIZE, model.checkpoint_encoder=true, "
    "model.adaptation=frozen, or precision=bf16 where the device computes in it"
)


class Fit(Enum):
    """How a training step fits into the free memory."""

    ROOMY = "also where freed memory is kept"
    TIGHT = "where freed memory is returned to the system"
    SHORT = "it may not fit"


def run_precision(config: Config) -> tuple[torch.device, torch.dtype]:
    """Return the device of a run and the precision of its network; a GPU that is not here is taken to compute in bf16.

    Raises:
        ConfigError: There is no such device, or it cannot compute in this precision.
    """
    try:
        device = choose_device(config.device)
    except ConfigError:
        if not config.device.startswith("cuda"):
            raise
        return torch.device("cuda"), torch.float32 if config.precision == "32" else torch.bfloat16
    return device, training_dtype(config.precision, device)


def step_memory(config: Config, plan: NetworkPlan, batch_size: int, ranks: Ranks = ALONE) -> TrainingMemory:
    """Estimate the memory of a training step of a configuration, on its device and in its precision.

    Args:
        config: The configuration.
        plan: The plan.
        batch_size: Patches per step.
        ranks: The processes of the run; several do not record their steps.

    Raises:
        ConfigError: The settings do not fit each other.
    """
    settings = config.train
    device, dtype = run_precision(config)
    loss = SegmentationLoss(settings.loss, batch_dice=settings.batch_dice, region_indices=plan.region_indices)
    loss.to("meta")

    def of_levels(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        total: Tensor = loss(outputs if settings.deep_supervision else outputs[:1], target)
        return total

    return training_memory(
        config.model,
        plan,
        batch_size,
        of_levels,
        device_type=device.type,
        dtype=dtype,
        accumulates=settings.accumulate > 1,
        replays=choose_graphs(config, device, ranks) is not None,
    )


def precision_text(config: Config) -> str:
    """Return precision and device of a run in words: ``float32 on cpu``."""
    device, dtype = run_precision(config)
    return f"{'bf16' if dtype == torch.bfloat16 else 'float32'} on {device}"


def compare_with_free(config: Config, needed_bytes: int, processes: int = 1) -> tuple[Fit, str]:
    """Compare the memory of a training step with what is free on its device.

    Args:
        config: The configuration.
        needed_bytes: Memory of a step, by `step_memory`.
        processes: Processes that share the device.

    Returns:
        How the step fits, and a sentence with what is needed and free.
    """
    device, _ = run_precision(config)
    on_cpu, needed = device.type == "cpu", needed_bytes * processes
    most = int(HEAP_FACTOR * needed) if on_cpu else needed
    kept = f", and up to {format_size(most)} where freed memory is kept, which is faster" if on_cpu else ""
    text = f"a training step needs about {format_size(needed)} in {precision_text(config)}{kept}"
    free = free_memory(device) if on_cpu or torch.cuda.is_available() else None
    if free is None:
        return Fit.ROOMY, f"{text}; what is free on {device} is not known here"
    fit = Fit.ROOMY if most <= free else Fit.TIGHT if ERROR_FACTOR * needed <= free else Fit.SHORT
    return fit, f"{text}; {format_size(free)} are free on {device}"


def prepare_memory(config: Config, plan: NetworkPlan, ranks: Ranks) -> None:
    """Compare a training step with the free memory: return freed memory if it fits so alone, warn if it may not fit.

    The estimate is one, so a step that may not fit is no error, unless the machine has less memory than it needs.

    Args:
        config: The configuration, with its batch size.
        plan: The plan.
        ranks: The processes of the run; those of one machine share the memory of its CPU. The first one logs.

    Raises:
        ConfigError: The step needs more than the whole memory of the machine.
    """
    assert config.train.batch_size is not None  # `prepare` fills it in from the plan
    needed = step_memory(config, plan, share_of_batch(config.train.batch_size, ranks.size), ranks)
    on_cpu = run_precision(config)[0].type == "cpu"
    fit, text = compare_with_free(config, needed.total, ranks.local_size if on_cpu else 1)
    if fit is Fit.SHORT and on_cpu and needed.total > (total := total_memory()):
        found = f"{text}, of {format_size(total)} in all"
        raise ConfigError("a training step cannot fit into memory", found=found, hint=SAVE_HINT)
    returns = fit is not Fit.ROOMY and on_cpu and return_freed_memory()
    if not ranks.is_first:
        return
    if fit is Fit.SHORT:
        logger.warning("the run may not fit into memory: %s; %s", text, SAVE_HINT)
    elif returns:
        logger.info("freed memory is returned to the system, which costs time, because memory is tight: %s", text)


def network_name(config: Config) -> str:
    """Return the network in words: ``dinov2_s14 (full)``."""
    model = config.model
    if model.baseline is not None or model.encoder == "identity":
        return model.baseline or model.encoder
    return f"{model.encoder} ({model.adaptation})"


def memory_budget(config: Config, settings: PlanSettings) -> MemoryBudget | None:
    """Return the limit of memory that a plan keeps with the network of a configuration: on a CPU only a stated one."""
    limit = settings.memory_bytes
    if limit is None and run_precision(config)[0].type != "cuda":
        return None
    return MemoryBudget(
        limit_bytes=GPU_MEMORY_BYTES if limit is None else limit,
        training_bytes=partial(_bytes, config),
        network=network_name(config),
        default=limit is None,
    )


def _bytes(config: Config, plan: Plan) -> int:
    return step_memory(config, plan, plan.batch_size).total
