"""Preparation of a pretraining: checks, run folder, scans, and the sizes of the views."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.config.encoders import CATALOGUE
from volseg.config.schema import Config, TrainConfig
from volseg.device import choose_device, training_dtype
from volseg.errors import ConfigError, DataError
from volseg.io.cases import listed
from volseg.io.json_files import read_json, write_json
from volseg.models.build import check_attention
from volseg.models.start import weight_file
from volseg.parallel import StageProgress, stage_progress
from volseg.preprocessing.cache import cache_in_use, digest
from volseg.pretraining.encoder import check_encoder
from volseg.pretraining.scans import ScanSplit, find_scans
from volseg.pretraining.slices import SliceSource, ViewShape, ct_scaling, slice_sources, view_shape
from volseg.pretraining.store import StoredScan, store_folder, store_scans
from volseg.training.checkpoint import CHECKPOINTS, has_checkpoint
from volseg.training.inputs import INPUTS_FILE, NEW_RUN, SPLIT_FILE
from volseg.training.loggers import check_logger
from volseg.training.ranks import Ranks, share_of_batch
from volseg.training.resume import save_config
from volseg.training.run_folder import run_folder
from volseg.training.schedule import Budget

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretraining:
    """Scans and configuration of a run.

    Attributes:
        config: The configuration.
        folder: The run folder.
        split: The scans as files.
        shape: Size of the views.
        train: Scans that are trained on.
        held_out: Scans for the measures of the log, at most ``train.validate_cases``.
        data_sha256: Hash of the contents of all scans that are trained on.
        resumed: Whether it continues an interrupted run from its checkpoint.
    """

    config: Config
    folder: Path
    split: ScanSplit
    shape: ViewShape
    train: tuple[SliceSource, ...]
    held_out: tuple[SliceSource, ...]
    data_sha256: str
    resumed: bool

    @property
    def batch_size(self) -> int:
        """Slices per step."""
        assert self.config.train.batch_size is not None  # checked before
        return self.config.train.batch_size

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / CHECKPOINTS


@contextmanager
def prepare_together(
    config: Config, progress: StageProgress | None, ranks: Ranks, *, resume: bool = False
) -> Iterator[Pretraining]:
    """Prepare a run in the first process, which holds the run folder; the others wait and receive it.

    Args:
        config: The configuration.
        progress: Called with the stage ``preprocess`` and the number of finished and of all scans.
        ranks: The processes of the run.
        resume: Continue an interrupted run; without a checkpoint the run starts anew.

    Raises:
        ConfigError: A setting is invalid, or is for training with labels alone.
        DataError: There are no scans, some cannot be used or are too small, or they are not those of the resumed run.
        ModelFileError: The weight file does not exist, or cannot be downloaded.
        OutputError: There is a run in the folder already, another process works there, or it cannot be written.
    """
    with ranks.held_by_first(lambda: _prepare(config, progress, resume=resume, processes=ranks.size)) as experiment:
        yield experiment


@contextmanager
def _prepare(config: Config, progress: StageProgress | None, *, resume: bool, processes: int) -> Iterator[Pretraining]:
    folder = Path(config.output)
    resumed = resume and has_checkpoint(folder / CHECKPOINTS)
    check_settings(config, resumed=resumed, processes=processes)
    split = find_scans(config)
    cache = Path(config.data.cache) if config.data.cache else folder.parent / "preprocessed"
    stored = store_folder(cache, split.name, split.channels)
    with run_folder(folder, "volseg pretrain", resume=resume, resumed=resumed), cache_in_use(stored):
        cases = (*split.train, *split.held_out[: config.train.validate_cases])
        work = stage_progress(progress, "preprocess")
        scans = store_scans(cases, stored, split.channels, work, workers=config.data.workers)
        trained, held_out = scans[: len(split.train)], scans[len(split.train) :]
        if resumed:
            _check_inputs(folder, split, trained, held_out)
        experiment = _experiment(config, split, trained, held_out, resumed=resumed)
        if not resumed:
            write_json(folder / SPLIT_FILE, split.to_dict())
            write_json(folder / INPUTS_FILE, _inputs(trained, held_out))
            save_config(config, folder)
        yield experiment


def check_settings(config: Config, *, resumed: bool, processes: int) -> None:
    """Fail fast on settings that are invalid for any scans; official weights are downloaded.

    Raises:
        ConfigError: The run has no end or batch size, the encoder cannot be pretrained, a setting is for training with
            labels alone, or device, attention kernel or weights are not available.
        ModelFileError: The weight file does not exist, or cannot be downloaded.
    """
    Budget.from_config(config.train)
    check_encoder(config.model)
    for name in ("keep_best", "stop_after", "optimizer"):
        if getattr(config.train, name) != getattr(TrainConfig, name):
            problem, found = f"train.{name} is for training with labels", getattr(config.train, name)
            raise ConfigError(problem, found=found, hint=f"leave train.{name} out")
    if config.train.batch_size is None:
        hint = "set train.batch_size, or use --config pretrain"
        raise ConfigError("train.batch_size is not set, and pretraining has no plan to take it from", hint=hint)
    share_of_batch(config.train.batch_size, processes)
    check_logger(config.train.logger)
    device = choose_device(config.device)
    check_attention(config.model, device, training_dtype(config.precision, device))
    if not resumed:
        weight_file(config.model)


def _experiment(
    config: Config, split: ScanSplit, trained: list[StoredScan], held_out: list[StoredScan], *, resumed: bool
) -> Pretraining:
    """Choose the sizes of the views and the axes of each scan."""
    shape = view_shape(trained, config.pretrain, CATALOGUE[config.model.encoder].patch)
    ct, axes = ct_scaling(trained), config.pretrain.axes
    sides = [
        f"{tokens} x {tokens} tokens ({tokens * shape.patch} pixels)"
        for tokens in (shape.global_tokens, shape.local_tokens)
    ]
    logger.info("two global views of %s, %d local views of %s", sides[0], shape.local_views, sides[1])
    if shape.global_tokens < config.pretrain.global_tokens:
        logger.info(
            "pretrain.global_tokens is %d, but half of the scans are too small for more than %d with "
            "pretrain.token_stride=%d; a smaller stride gives more",
            config.pretrain.global_tokens,
            shape.global_tokens,
            shape.token_stride,
        )
    return Pretraining(
        config=config,
        folder=Path(config.output),
        split=split,
        shape=shape,
        train=tuple(slice_sources(trained, axes, shape, ct)),
        held_out=tuple(slice_sources(held_out, axes, shape, ct)),
        data_sha256=digest(sorted(scan.sha256 for scan in trained)),
        resumed=resumed,
    )


def _inputs(trained: list[StoredScan], held_out: list[StoredScan]) -> dict[str, Any]:
    cases, measured = ({scan.id: {"image_sha256": scan.sha256} for scan in scans} for scans in (trained, held_out))
    return {"cases": cases, "held_out": measured}


def _check_inputs(folder: Path, split: ScanSplit, trained: list[StoredScan], held_out: list[StoredScan]) -> None:
    """Check that the scans and their split are those with which the run began.

    Raises:
        ConfigError: The record of the run is missing or damaged.
        DataError: They are not; the scans are named.
    """
    before, now = read_json(folder / INPUTS_FILE, "inputs"), _inputs(trained, held_out)
    recorded = before.get("cases") if isinstance(before, dict) else None
    if not isinstance(recorded, dict):
        hint = "restore the file from a copy, or start a new run with another output="
        raise ConfigError("this is not the record of a run's inputs", file=folder / INPUTS_FILE, hint=hint)
    differing = sorted(
        name for name in recorded.keys() | now["cases"].keys() if recorded.get(name) != now["cases"].get(name)
    )
    measured = before.get("held_out")  # runs of earlier versions have none, and train.validate_cases may change
    known = measured if isinstance(measured, dict) else {}
    differing += sorted(name for name, scan in now["held_out"].items() if known.get(name, scan) != scan)
    if not differing and read_json(folder / SPLIT_FILE, "split") != split.to_dict():
        differing = ["their split"]
    if differing:
        problem = "the scans are not those with which the run began"
        raise DataError(problem, file=folder, found=f"missing, new or changed: {listed(differing)}", hint=NEW_RUN)
