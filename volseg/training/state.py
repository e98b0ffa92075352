"""The state of a run: weights, their average and the optimizer; one training step, saving and restoring."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from volseg.config.load import config_from_dict, config_to_dict
from volseg.config.schema import Config
from volseg.device import choose_device, training_dtype
from volseg.errors import ConfigError, ModelFileError
from volseg.models.build import build_model, parameter_groups
from volseg.models.contracts import NetworkPlan, SegmentationNetwork
from volseg.training.checkpoint import Checkpoint, RunProgress, load_checkpoint, save_checkpoint
from volseg.training.ema import WeightAverage
from volseg.training.frozen_encoder import training_inputs
from volseg.training.losses import build_loss, resized
from volseg.training.optimizer import build_optimizer, load_optimizer, step_if
from volseg.training.outcome import StepOutcome
from volseg.training.ranks import ALONE, Ranks
from volseg.training.replay import Replayer, choose_graphs
from volseg.training.resume import (
    KEEP_BEST,
    VALIDATED,
    Change,
    changes,
    log_changes,
    refuse_changes,
    refuse_earlier_end,
)
from volseg.training.schedule import learning_rate_factor

logger = logging.getLogger(__name__)


class RunState(ABC):
    """What the states of training and pretraining share: configuration, processes, optimizer and checkpoints."""

    _config: Config
    _ranks: Ranks
    _optimizer: Any
    _saved_step: int | None = None

    @abstractmethod
    def averaged(self) -> tuple[nn.Module, nn.Module, int]:
        """Return the trained weights, their average, and the number of updates of that."""

    @property
    def lr(self) -> float:
        """Highest learning rate of all parameter groups in the last step."""
        return max(float(group["lr"]) for group in self._optimizer.param_groups)

    def _step_if_finite(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Step the optimizer if loss and gradient norm are finite; return whether they are, on the device."""
        is_finite = torch.stack([loss, norm]).isfinite().all()
        step_if(self._optimizer.optimizer, is_finite)
        return is_finite

    def save(self, folder: Path, progress: RunProgress) -> None:
        """Write the checkpoint in the first process, unless that of this step is the last one.

        Raises:
            OutputError: It cannot be written; those of before are kept.
        """
        if progress.step == self._saved_step or not self._ranks.is_first:
            return
        model, average, updates = self.averaged()
        checkpoint = Checkpoint(
            model=model.state_dict(),
            average=average.state_dict(),
            average_updates=updates,
            optimizer=self._optimizer.state_dict(),
            config=config_to_dict(self._config),
            progress=progress,
        )
        save_checkpoint(folder, checkpoint)
        self._saved_step = progress.step


class TrainingState(RunState):
    """Network, averaged weights and optimizer of a run.

    Args:
        config: The configuration.
        plan: The plan.
        ranks: The processes of the run; all have the same state, and the first writes it.
        read_weights: Load the initial weights; not needed before `restore`.

    Attributes:
        model: The trained network.
        average: Its averaged weights.
        device: Device of both.
        changes: Settings in which this run differs from the one it was restored from.
    """

    def __init__(self, config: Config, plan: NetworkPlan, ranks: Ranks = ALONE, *, read_weights: bool = True) -> None:
        self._config = config
        self._ranks = ranks
        with ranks.together():
            self._fabric = make_fabric(config, ranks)
            self.device = self._fabric.device
            torch.manual_seed(config.seed)
            dtype = training_dtype(config.precision, self.device)
            self.model = build_model(config.model, plan, device=self.device, dtype=dtype, read_weights=read_weights)
        settings = config.train
        groups = parameter_groups(
            self.model,
            lr=settings.lr,
            encoder_lr_scale=settings.encoder_lr_scale,
            layer_decay=settings.layer_decay,
            weight_decay=settings.weight_decay,
        )
        self._peaks = [group["lr"] for group in groups]
        self._levels = None if settings.deep_supervision else 1
        trained = TrainedLevels(self.model, self._levels)
        self._network, self._optimizer = self._fabric.setup(trained, build_optimizer(settings, groups, self.device))
        self.average = WeightAverage(self.model, settings.ema_decay)
        self._loss = build_loss(settings, plan, ranks).to(self.device)
        self._replayer = Replayer(self._gradients, self.model, choose_graphs(config, self.device, ranks))
        self.changes: tuple[Change, ...] = ()

    def step(self, batches: Sequence[dict[str, Any]], step: int, spent: float) -> StepOutcome:
        """Run one optimizer step on the gradients of all batches; skip it if loss or gradient is not finite.

        Args:
            batches: Batches of equal size, which together are the batch of this step; of several processes, the part
                of each batch that belongs to this one. Each has ``image`` (B, C, D + 2 halo, H, W) and ``label``
                (B, D, H, W), on any device; ``tokens`` of the slices (B, D, T, h, w, E) if they are stored.
            step: Number of the step; seeds the network's random numbers.
            spent: Completed fraction of the run, 0 to 1; determines the learning rate.

        Returns:
            The loss of all batches of all processes together. If it was not finite, weights, their average and the
            state of the optimizer are unchanged.
        """
        settings = self._config.train
        factor = learning_rate_factor(spent, settings)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        seed = partial(seed_step, self._config.seed, step, self._ranks.rank)
        seed()
        loss = self._replayer.gradients(batches, seed)
        norm = self._fabric.clip_gradients(
            self._network, self._optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False
        )
        assert norm is not None
        self.average.update(self._step_if_finite(loss, norm))
        return StepOutcome(loss, norm)

    @property
    def is_replayed(self) -> bool:
        """Whether the kernels of the steps were recorded and are replayed."""
        return self._replayer.is_recorded

    def _gradients(self, batches: Sequence[dict[str, Any]]) -> Tensor:
        """Compute the gradients of the loss of all batches, one batch after the other; return the loss.

        The loss of each process is its part of the sum over all. DistributedDataParallel averages the gradients over
        the processes, after the last batch; times their number this is the gradient of the sum.
        """
        labels = [batch["label"].to(self.device, non_blocking=True) for batch in batches]
        sizes = self.model.level_sizes(labels[0].shape[1:])[: self._levels]
        targets = [resized(label, sizes) for label in labels]
        totals = torch.stack([self._loss.voxel_weights(target) for target in targets]).sum(dim=0)
        totals, share = self._ranks.sum(totals), 1 / (len(batches) * self._ranks.size)
        losses = []
        self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        for number, (batch, target) in enumerate(zip(batches, targets, strict=True), start=1):
            image = batch["image"].to(self.device, non_blocking=True)
            is_last = number == len(batches)
            with self._fabric.no_backward_sync(self._network, enabled=not is_last):
                inputs = training_inputs(batch, self.model.encoder, self.device)
                loss = self._loss(self._network(image, **inputs), target, share, totals)
                self._fabric.backward(loss * self._ranks.size)
            losses.append(loss.detach())
        return self._ranks.sum(torch.stack(losses).sum())

    def averaged(self) -> tuple[nn.Module, nn.Module, int]:
        """Return the network, its average, and the number of updates of that."""
        return self.model, self.average.model, self.average.updates

    def restore(self, folder: Path) -> RunProgress:
        """Load the checkpoint, or its predecessor if it is damaged, and return the progress of the run.

        Raises:
            ConfigError: The checkpoint is of a run with other settings, of those that may not change, or the new end of
                the run is before it.
            ModelFileError: There is none, or all are damaged.
        """
        parts = (self.model, self.average.model, self._optimizer)
        checkpoint, self.changes = restore_parts(folder, self._config, self._ranks, *parts)
        self.average.updates, progress = checkpoint.average_updates, checkpoint.progress
        # other cases, or weights that were not kept
        starts_anew = any(
            change.key == VALIDATED or (change.key == KEEP_BEST and change.after) for change in self.changes
        )
        best_dice = -1.0 if starts_anew else progress.best_dice
        return replace(progress, best_dice=best_dice)


class Stateful(Protocol):
    """What loads its state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Load it."""


def restore_parts(
    folder: Path, config: Config, ranks: Ranks, model: Stateful, average: Stateful, optimizer: torch.optim.Optimizer
) -> tuple[Checkpoint, tuple[Change, ...]]:
    """Load the checkpoint of a run, or its predecessor if it is damaged, into the parts of its state.

    Returns:
        The checkpoint, and the settings in which this run differs from it.

    Raises:
        ConfigError: The checkpoint is of a run with other settings, of those that may not change, or the new end of
            the run is before it.
        ModelFileError: There is none, or all are damaged.
    """
    with ranks.first_goes_ahead():  # it renames a damaged file
        checkpoint = load_checkpoint(folder)
    hint = "restore the checkpoint folder of the run, or choose another output="
    before, progress = config_from_dict(checkpoint.config, origin=folder), checkpoint.progress
    found = changes(before, config)
    refuse_changes(found, folder)
    refuse_earlier_end(found, config, progress.step, progress.elapsed_s)
    try:
        model.load_state_dict(checkpoint.model)
        average.load_state_dict(checkpoint.average)
        load_optimizer(optimizer, checkpoint.optimizer)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ModelFileError("the checkpoint does not fit the network", file=folder, found=error, hint=hint) from error
    logger.info("resumed at step %d", progress.step)
    try:
        log_changes(found, before, config, progress.step, progress.elapsed_s)
    except ConfigError as error:  # the former configuration has no end
        raise error.in_file(folder) from error
    return checkpoint, tuple(found)


class TrainedLevels(nn.Module):
    """A network that returns only the levels that have a loss: DistributedDataParallel waits for the gradients of all.

    Args:
        model: The network.
        levels: Number of levels, the finest first; ``None`` for all.
    """

    def __init__(self, model: SegmentationNetwork, levels: int | None) -> None:
        super().__init__()
        self.model = model
        self.levels = levels

    def forward(self, x: Tensor, **inputs: Any) -> Sequence[Tensor]:
        """Compute the logits of the levels; arguments as those of the network."""
        return self.model(x, **inputs)[: self.levels]  # type: ignore[no-any-return]


def make_fabric(config: Config, ranks: Ranks = ALONE) -> Fabric:
    """Return Lightning Fabric for the device and precision of a run.

    Raises:
        ConfigError: The device is not available, or cannot be that of several processes.
    """
    device = choose_device(config.device)
    precision: Any = "bf16-mixed" if training_dtype(config.precision, device) == torch.bfloat16 else "32-true"
    if ranks.size == 1:
        devices: int | list[int] = 1 if device.index is None else [device.index]
        return Fabric(accelerator=device.type, devices=devices, precision=precision)
    ranks.check_device(device)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # of weights with one channel
    unused = not config.train.deep_supervision  # the heads of coarser levels
    fabric = Fabric(
        accelerator=device.type,
        devices=ranks.local_size,
        num_nodes=ranks.size // ranks.local_size,
        strategy=DDPStrategy(find_unused_parameters=unused),
        plugins=[TorchElasticEnvironment()],
        precision=precision,
    )
    fabric.launch()
    return fabric


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch for one optimizer step, so that a resumed run draws the same random numbers.

    Each process draws its own, because its samples are others.
    """
    torch.manual_seed((seed * 1_000_003 + step + rank * 2**40) % 2**63)
