"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from volseg.config.load import config_to_dict
from volseg.config.schema import Config
from volseg.data.augment import build_augmentation
from volseg.data.cache import data_hash
from volseg.data.dataset import PatchDataset
from volseg.errors import ConfigError, VolsegError
from volseg.inference.predictor import choose_device
from volseg.io.model_file import file_sha256, save_model
from volseg.models.build import build_model, count_parameters, parameter_groups
from volseg.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from volseg.training.ema import WeightAverage
from volseg.training.experiment import Experiment
from volseg.training.logging import RunLog
from volseg.training.losses import SegmentationLoss
from volseg.training.reproducibility import provenance, seed_step
from volseg.training.schedule import Budget, learning_rate_factor
from volseg.training.validation import validate
from volseg.version import __version__

logger = logging.getLogger(__name__)

LOG_EVERY = 20
"""Steps between lines of the training log."""
ENDLESS = 2**40
"""Samples of a run that is limited by time."""


def train(experiment: Experiment, *, resume: bool) -> Path:
    """Train until the budget is spent.

    Args:
        experiment: Data, plan and configuration.
        resume: Go on from the checkpoint, if there is one.

    Returns:
        The model file, with the averaged weights.

    Raises:
        ConfigError: The configuration does not fit the checkpoint, or the run has no end.
        ModelFileError: Weight file or checkpoint cannot be used.
        VolsegError: The loss is not finite.
    """
    config, settings = experiment.config, experiment.config.train
    budget = Budget.from_config(settings)
    fabric = make_fabric(config)
    torch.manual_seed(config.seed)
    model = build_model(config.model, experiment.plan)
    record = write_provenance(experiment, count_parameters(model))
    groups = parameter_groups(
        model, lr=settings.lr, encoder_lr_scale=settings.encoder_lr_scale, weight_decay=settings.weight_decay
    )
    peaks = [group["lr"] for group in groups]
    network, optimizer = fabric.setup(model, torch.optim.AdamW(groups))
    average = WeightAverage(model, settings.ema_decay)
    state = TrainingState(model, average, optimizer, config)
    progress = state.restore(experiment.checkpoint_folder) if resume else Progress()
    log = RunLog(experiment.folder, progress.step, settings.max_steps)
    loss_of = SegmentationLoss()
    losses: list[Tensor] = []
    started = time.perf_counter() - progress.elapsed_s

    for batch in batches(experiment, fabric.device, progress.step):
        spent = budget.progress(progress.step, progress.elapsed_s)
        if spent >= 1:
            break
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(spent, settings.warmup_fraction)
        seed_step(config.seed, progress.step)
        network.train()
        outputs = network(batch["image"])
        loss = loss_of(outputs if settings.deep_supervision else outputs[:1], batch["label"])
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        fabric.clip_gradients(network, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        average.update(model)

        progress.step += 1
        progress.elapsed_s = time.perf_counter() - started
        losses.append(loss.detach())
        log.advance()
        if progress.step % LOG_EVERY == 0:
            log.train(training_row(losses, optimizer.param_groups[0]["lr"], progress))
            losses.clear()
        if progress.step % settings.validate_every == 0:
            row = validate(average.model, experiment, fabric.device, settings.validate_cases)
            progress.elapsed_s = time.perf_counter() - started
            log.validation({"step": progress.step, **row, "elapsed_s": round(progress.elapsed_s, 1)})
            if row["val_dice"] > progress.best_dice:
                progress.best_dice = row["val_dice"]
                if settings.keep_best:
                    write_model(experiment, average.model, record, progress, "model_best.safetensors")
        if progress.step % settings.checkpoint_every == 0:
            state.save(experiment.checkpoint_folder, progress)

    log.close()
    state.save(experiment.checkpoint_folder, progress)
    return write_model(experiment, average.model, record, progress, "model.safetensors")


class TrainingState:
    """What a checkpoint holds: weights, their average, the optimizer, and where the run stands.

    Args:
        model: The trained network.
        average: Its averaged weights.
        optimizer: The optimizer.
        config: The configuration; its model part must be the checkpoint's.
    """

    def __init__(
        self, model: nn.Module, average: WeightAverage, optimizer: torch.optim.Optimizer, config: Config
    ) -> None:
        self.model, self.average, self.optimizer, self.config = model, average, optimizer, config

    def save(self, folder: Path, progress: Progress) -> None:
        """Write the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "average_updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(progress),
            "model_config": asdict(self.config.model),
        }
        save_checkpoint(folder, state)

    def restore(self, folder: Path) -> Progress:
        """Read the checkpoint if there is one, and say where the run stands."""
        state = load_checkpoint(folder)
        if state is None:
            return Progress()
        if state["model_config"] != asdict(self.config.model):
            raise ConfigError(
                "the checkpoint is of another model",
                file=folder,
                found=state["model_config"],
                expected=asdict(self.config.model),
                mend="resume with the run's own configuration, or choose another output=",
            )
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.updates = state["average_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        logger.info("resumed at step %d", state["progress"]["step"])
        return Progress(**state["progress"])


def make_fabric(config: Config) -> Fabric:
    """Device and precision of a run; ``auto`` precision is bf16 only on hardware that has it."""
    device = choose_device(config.device)
    native_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and native_bf16)
    devices: int | list[int] = 1 if device.index is None else [device.index]
    return Fabric(accelerator=device.type, devices=devices, precision="bf16-mixed" if bf16 else "32-true")


def batches(experiment: Experiment, device: torch.device, first_step: int) -> Iterator[dict[str, Any]]:
    """Batches from ``first_step`` on, to the end of time. Sample ``i`` is the same however often a run was resumed."""
    config = experiment.config
    size = config.train.batch_size
    dataset = PatchDataset(
        experiment.train_cases,
        experiment.plan,
        build_augmentation(experiment.plan, config.augment),
        seed=config.seed,
        halo=(config.model.adjacent_slices - 1) // 2,
        foreground_fraction=config.train.foreground_fraction,
        samples=ENDLESS,
    )
    loader = DataLoader(
        dataset,
        batch_size=size,
        sampler=range(first_step * size, ENDLESS),
        num_workers=config.data.workers,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        yield {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }


def training_row(losses: list[Tensor], lr: float, progress: Progress) -> dict[str, Any]:
    """One line of the training log.

    Raises:
        VolsegError: The loss is not finite.
    """
    loss = torch.stack(losses).mean().item()
    if not math.isfinite(loss):
        raise VolsegError("the loss is not finite", found=loss, mend="lower train.lr, then go on with --resume")
    return {"step": progress.step, "loss": round(loss, 6), "lr": lr, "elapsed_s": round(progress.elapsed_s, 2)}


def write_provenance(experiment: Experiment, parameters: dict[str, int]) -> dict[str, Any]:
    """Log and keep what the run is made with."""
    logger.info("parameters: %(total)d, of them trainable: %(trainable)d", parameters)
    weights = experiment.config.model.weights
    weights_hash = file_sha256(weights) if weights is not None and weights != "random" else None
    record = provenance(experiment.config.seed, data_hash(experiment.train_cases), weights_hash, parameters)
    (experiment.folder / "provenance.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def write_model(
    experiment: Experiment, model: nn.Module, record: dict[str, Any], progress: Progress, name: str
) -> Path:
    """Write a model file into the run folder."""
    path = experiment.folder / name
    metadata = {
        "config": config_to_dict(experiment.config),
        "plan": experiment.plan.to_dict(),
        "labels": experiment.plan.labels,
        "versions": {"volseg": __version__, "torch": torch.__version__},
        "training": {**record, **asdict(progress)},
    }
    save_model(path, model.state_dict(), metadata)
    return path
