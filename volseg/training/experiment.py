"""Preparation of a training run: checks, run folder, plan, split and preprocessed cases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.config.load import save_config
from volseg.config.schema import Config
from volseg.data.splits import choose_shots, make_splits
from volseg.device import choose_device, training_dtype
from volseg.errors import ConfigError, DataError, OutputError
from volseg.io.atomic import remove_stale
from volseg.io.datasets import Case, Dataset, read_dataset
from volseg.io.json_files import read_json, write_json
from volseg.io.locks import folder_lock
from volseg.models.build import check_attention
from volseg.models.start import weight_file
from volseg.parallel import StageProgress, stage_progress
from volseg.planning.fingerprint import fingerprint
from volseg.planning.plan import Plan, make_plan, read_overrides
from volseg.postprocessing.rules import Postprocessing
from volseg.preprocessing.cache import CachedCase, cache_dataset, cache_in_use
from volseg.training.checkpoint import CHECKPOINTS, has_checkpoint
from volseg.training.schedule import Budget

logger = logging.getLogger(__name__)

BEFORE_STEP_1 = ("config.yaml", "plan.json", "splits.json", "provenance.json")
"""Files of a run folder before the first step; a new run replaces them."""
RUN_FILES = ("checkpoint", "metrics.jsonl", "model.safetensors", "model_best.safetensors", "progress.png", "validation")
"""Files of a run folder that only ``--resume`` may change."""

SPLIT_SEED = 0


@dataclass(frozen=True)
class Experiment:
    """Data, plan and configuration of a run.

    Attributes:
        config: The configuration.
        folder: The run folder.
        dataset: The data set with its labels.
        plan: The plan.
        train_cases: Preprocessed training cases.
        val_cases: Held-out cases, as files.
        resumed: Whether it continues an interrupted run from its checkpoint.
    """

    config: Config
    folder: Path
    dataset: Dataset
    plan: Plan
    train_cases: tuple[CachedCase, ...]
    val_cases: tuple[Case, ...]
    resumed: bool = False

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / CHECKPOINTS

    @property
    def postprocessing(self) -> Postprocessing:
        """Postprocessing of the model's masks."""
        return Postprocessing.from_config(self.config.postprocess, self.plan.labels)


@contextmanager
def prepare(config: Config, progress: StageProgress | None = None, *, resume: bool = False) -> Iterator[Experiment]:
    """Read the data set, make plan and split, preprocess the training cases and set up the run folder.

    The run folder is locked until the block ends.

    Args:
        config: The configuration.
        progress: Called with the stages ``fingerprint`` and ``preprocess`` and the number of finished and of all cases.
        resume: Continue an interrupted run with its plan and split; without a checkpoint the run starts anew.

    Yields:
        The experiment.

    Raises:
        ConfigError: No data folder, a setting that cannot work here, or a value that does not fit the data.
        DataError: The data set or one of its cases cannot be used.
        ModelFileError: The weight file does not exist, or cannot be downloaded.
        OutputError: There is a run in the folder already, another process trains there, or it cannot be written.
    """
    folder = Path(config.output)
    resumed = resume and has_checkpoint(folder / CHECKPOINTS)
    check_settings(config, resumed=resumed)
    if config.data.root is None:
        raise ConfigError("no data set is given", hint="add data.root=FOLDER")
    dataset = read_dataset(config.data.root)
    Postprocessing.from_config(config.postprocess, dataset.labels)  # fail early on misspelt class names
    read_overrides(config.plan)
    with (
        _run_folder(folder, resume=resume, resumed=resumed),
        _experiment(config, dataset, progress, resumed=resumed) as experiment,
    ):
        yield experiment


@contextmanager
def _experiment(
    config: Config, dataset: Dataset, progress: StageProgress | None, *, resumed: bool
) -> Iterator[Experiment]:
    """Make plan and split, or read those of the resumed run, and preprocess the training cases.

    The cases in the cache are protected from removal until the block ends.
    """
    folder, workers = Path(config.output), config.data.workers
    if resumed:
        plan, split = Plan.load(folder / "plan.json"), read_split(folder / "splits.json")
    else:
        split = choose_split(dataset, config)
        measured = fingerprint(dataset, stage_progress(progress, "fingerprint"), workers=workers)
        plan = make_plan(measured, config.plan)
        plan.save(folder / "plan.json")
        write_json(folder / "splits.json", split)
        save_config(config, folder / "config.yaml")
    cache = Path(config.data.cache) if config.data.cache else folder.parent / "preprocessed"
    with cache_in_use(cache, plan):
        preprocess_progress = stage_progress(progress, "preprocess")
        train_cases = cache_dataset(_cases(dataset, split["train"]), plan, cache, preprocess_progress, workers=workers)
        logger.info("%d training and %d validation cases", len(split["train"]), len(split["val"]))
        val_cases = _cases(dataset, split["val"])
        yield Experiment(config, folder, dataset, plan, tuple(train_cases), val_cases, resumed)


def check_settings(config: Config, *, resumed: bool) -> None:
    """Fail fast on settings that are invalid for any data set; official weights are downloaded.

    Raises:
        ConfigError: The run has no end, or the device, attention kernel or weights are not available.
        ModelFileError: The weight file does not exist, or cannot be downloaded.
    """
    Budget.from_config(config.train)
    device = choose_device(config.device)
    check_attention(config.model, device, training_dtype(config.precision, device))
    if not resumed:
        weight_file(config.model)


def choose_split(dataset: Dataset, config: Config) -> dict[str, Any]:
    """Return the training and validation cases of this run's fold, as written to ``splits.json``.

    The folds do not depend on the run's seed, so that runs of several seeds are scored on the same cases; which few
    shots are taken does.
    """
    split = make_splits([case.id for case in dataset.cases], SPLIT_SEED)[config.data.fold]
    train = choose_shots(split["train"], config.data.shots, config.seed)
    return {"fold": config.data.fold, "train": train, "val": split["val"]}


def read_split(path: Path) -> dict[str, Any]:
    """Read the ``splits.json`` of a run.

    Raises:
        ConfigError: It is missing or damaged, or a part of it is no list of cases.
    """
    split = read_json(path, "split")
    for part in ("train", "val"):
        names = split.get(part) if isinstance(split, dict) else split
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise ConfigError(
                f"the split file has no list of cases under {part!r}",
                file=path,
                found=str(names)[:80],
                hint="restore the file, or choose another output=",
            )
    both = sorted(set(split["train"]) & set(split["val"]))
    if both:
        hint = "restore the file, or choose another output="
        raise ConfigError("cases are both trained on and held out", file=path, found=", ".join(both[:5]), hint=hint)
    return dict(split)


@contextmanager
def _run_folder(folder: Path, *, resume: bool, resumed: bool) -> Iterator[None]:
    """Make the run folder and hold it.

    A run that was refused or stopped before its first step left nothing to lose: its folder is used again.

    Raises:
        OutputError: The folder holds a run that is not resumed, or other files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("the output folder cannot be written", file=folder, found=error) from error
    with folder_lock(folder, "volseg train"):
        others = sorted({entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - {*BEFORE_STEP_1})
        if others and not resume and not {*others} & {*RUN_FILES}:
            raise OutputError(
                "the output folder holds other files",
                file=folder,
                found=", ".join(others[:5]),
                expected="a new or empty folder",
                hint="choose another output=",
            )
        if others and not resume:
            raise OutputError(
                "there is a run in the output folder already",
                file=folder,
                hint="add --resume to continue it, or choose another output=",
            )
        if resume and not resumed:
            logger.warning("--resume: no checkpoint in %s, the run starts anew", folder)
        for written in (folder, folder / CHECKPOINTS):
            remove_stale(written)
        yield


def _cases(dataset: Dataset, ids: list[str]) -> tuple[Case, ...]:
    by_id = {case.id: case for case in dataset.cases}
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise DataError(
            "cases of the run's split are missing from the data set", file=dataset.root, found=", ".join(missing)
        )
    return tuple(by_id[name] for name in ids)
