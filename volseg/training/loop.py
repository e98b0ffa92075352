"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from volseg.config.load import config_to_dict
from volseg.config.schema import Config
from volseg.data.augment import build_augmentation
from volseg.data.datasets import PatchDataset
from volseg.device import choose_device
from volseg.errors import VolsegError
from volseg.io.json_files import read_json, write_json
from volseg.io.model_file import file_sha256, save_model
from volseg.models.build import check_attention, count_parameters, for_prediction
from volseg.models.contracts import SegmentationNetwork
from volseg.models.lora import merged_state
from volseg.models.start import weight_file
from volseg.preprocessing.cache import data_hash
from volseg.training.checkpoint import CHECKPOINTS, Progress, has_checkpoint
from volseg.training.experiment import Experiment, ProgressBar
from volseg.training.reproducibility import provenance
from volseg.training.run_log import RunLog
from volseg.training.samples import token_samples
from volseg.training.schedule import Budget
from volseg.training.state import TrainingState, compute_dtype
from volseg.training.validation import validate
from volseg.version import __version__

logger = logging.getLogger(__name__)

LOG_EVERY = 20
"""Steps between lines of the training log."""
ENDLESS = 2**40
"""Samples of a run; it ends when its budget is spent."""


def check_settings(config: Config, *, resume: bool) -> None:
    """Refuse what no data could hint before hours of preprocessing; official weights are downloaded.

    Raises:
        ConfigError: The run has no end, or device, attention kernel or weights cannot be had.
        ModelFileError: The weight file does not exist, or cannot be downloaded.
    """
    Budget.from_config(config.train)
    device = choose_device(config.device)
    check_attention(config.model, device, compute_dtype(config, device))
    if not (resume and has_checkpoint(Path(config.output) / CHECKPOINTS)):
        weight_file(config.model)


def train(experiment: Experiment, progress_bar: ProgressBar, *, resume: bool) -> Path:
    """Train until the budget is spent.

    Args:
        experiment: Data, plan and configuration.
        progress_bar: As in `volseg.training.experiment.prepare`.
        resume: Go on from the checkpoint, if there is one.

    Returns:
        The model file, with the averaged weights.

    Raises:
        ConfigError: The configuration does not fit the checkpoint, or the run has no end.
        ModelFileError: Weight file or checkpoint cannot be used.
        VolsegError: The loss is not finite; the last checkpoint is from before.
    """
    settings = experiment.config.train
    budget = Budget.from_config(settings)
    going_on = resume and has_checkpoint(experiment.checkpoint_folder)
    state = TrainingState(experiment.config, experiment.plan, read_weights=not going_on)
    record = write_provenance(experiment, count_parameters(state.model), going_on=going_on)
    progress = state.restore(experiment.checkpoint_folder) if going_on else Progress()
    samples = training_samples(experiment, state.model, progress_bar)
    log = RunLog(experiment.folder, progress.step, settings.max_steps)
    losses: list[Tensor] = []
    started = time.perf_counter() - progress.elapsed_s

    for batch in batches(samples, experiment.config, progress.step):
        spent = budget.progress(progress.step, progress.elapsed_s)
        if spent >= 1:
            break
        losses.append(state.step(batch, progress.step, spent))
        progress.step += 1
        progress.elapsed_s = time.perf_counter() - started
        log.advance()
        if progress.step % LOG_EVERY == 0:
            log.train(training_row(losses, state.lr, progress))
            losses.clear()
        if progress.step % settings.validate_every == 0:
            row = validate(state.average.model, experiment, state.device, settings.validate_cases)
            progress.elapsed_s = time.perf_counter() - started
            log.validation({"step": progress.step, **row, "elapsed_s": round(progress.elapsed_s, 1)})
            if row["val_dice"] > progress.best_dice:
                progress.best_dice = row["val_dice"]
                if settings.keep_best:
                    write_model(experiment, state.average.model, record, progress, "model_best.safetensors")
        if progress.step % settings.checkpoint_every == 0:
            state.save(experiment.checkpoint_folder, progress)

    log.close()
    state.save(experiment.checkpoint_folder, progress)
    return write_model(experiment, state.average.model, record, progress, "model.safetensors")


def training_samples(
    experiment: Experiment, model: SegmentationNetwork, progress_bar: ProgressBar
) -> Dataset[dict[str, Any]]:
    """Patches that are cut and augmented as they are needed, or variants whose tokens are stored."""
    config = experiment.config
    if config.data.cache_tokens:
        return token_samples(experiment, model, progress_bar, samples=ENDLESS)
    return PatchDataset(
        experiment.train_cases,
        experiment.plan,
        build_augmentation(experiment.plan, config.augment),
        seed=config.seed,
        halo=(config.model.adjacent_slices - 1) // 2,
        foreground_fraction=config.train.foreground_fraction,
        samples=ENDLESS,
    )


def batches(samples: Dataset[dict[str, Any]], config: Config, first_step: int) -> Iterator[dict[str, Any]]:
    """Batches from ``first_step`` on, to the end of time. Sample ``i`` is the same however often a run was resumed."""
    size = config.train.batch_size
    loader = DataLoader(
        _Reported(samples),
        collate_fn=_collate,
        batch_size=size,
        sampler=range(first_step * size, ENDLESS),
        num_workers=config.data.workers,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, VolsegError):
            raise batch
        yield batch


class _Reported(Dataset[Any]):
    """Samples of which a `VolsegError` is handed over, not raised: a worker would wrap it in its traceback."""

    def __init__(self, samples: Dataset[dict[str, Any]]) -> None:
        self._samples = samples

    def __getitem__(self, index: int) -> dict[str, Any] | VolsegError:
        try:
            return self._samples[index]
        except VolsegError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    """A batch, or the first error among its samples."""
    return next((sample for sample in samples if isinstance(sample, VolsegError)), None) or default_collate(samples)


def training_row(losses: list[Tensor], lr: float, progress: Progress) -> dict[str, Any]:
    """One line of the training log."""
    loss = round(torch.stack(losses).mean().item(), 6)
    return {"step": progress.step, "loss": loss, "lr": lr, "elapsed_s": round(progress.elapsed_s, 2)}


def write_provenance(experiment: Experiment, parameters: dict[str, Any], *, going_on: bool = False) -> dict[str, Any]:
    """Log and keep what the run is made with; a run that goes on keeps the hash of the file it started from."""
    config, path = experiment.config, experiment.folder / "provenance.json"
    logger.info("parameters: %s", parameter_text(parameters))
    if going_on:
        weights_hash = read_json(path, "provenance").get("weights_sha256")
    else:
        start = weight_file(config.model)
        weights_hash = file_sha256(start) if start is not None else None
    precision = compute_dtype(config, choose_device(config.device))
    record = provenance(config.seed, data_hash(experiment.train_cases), weights_hash, parameters, precision)
    write_json(path, record)
    return record


def parameter_text(parameters: dict[str, Any]) -> str:
    """Trainable of all parameters, of the network and of its parts, in one line."""
    counts = {"all": parameters, **parameters["parts"]}
    return "; ".join(f"{part}: {n['trainable']:,} of {n['total']:,} trainable" for part, n in counts.items())


def write_model(
    experiment: Experiment, model: nn.Module, record: dict[str, Any], progress: Progress, name: str
) -> Path:
    """Write a model file into the run folder.

    It holds what prediction needs: LoRA's matrices merged into the weights they belong to, and the configuration of
    that network. ``training`` keeps the one it was trained as, and its parameter counts.
    """
    path = experiment.folder / name
    trained = experiment.config.model
    metadata = {
        "config": config_to_dict(replace(experiment.config, model=for_prediction(trained))),
        "plan": experiment.plan.to_dict(),
        "labels": experiment.plan.labels,
        "postprocessing": experiment.postprocessing.to_dict(),
        "versions": {"volseg": __version__, "torch": torch.__version__},
        "training": {**record, "model": asdict(trained), **asdict(progress)},
    }
    save_model(path, merged_state(model), metadata)
    return path
