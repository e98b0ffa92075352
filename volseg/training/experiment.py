"""From a configuration to everything a run needs: folder, plan, split and preprocessed cases."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.config.load import save_config
from volseg.config.schema import Config
from volseg.data.splits import choose_shots, make_splits
from volseg.errors import ConfigError, DataError, OutputError
from volseg.io.datasets import Case, Dataset, read_dataset
from volseg.io.json_files import read_json, write_json
from volseg.planning.fingerprint import fingerprint
from volseg.planning.plan import Plan, make_plan, read_overrides
from volseg.postprocessing.rules import Postprocessing
from volseg.preprocessing.cache import CachedCase, cache_dataset
from volseg.training.checkpoint import CHECKPOINTS, has_checkpoint

logger = logging.getLogger(__name__)

SPLIT_SEED = 0
ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Experiment:
    """What a run trains on.

    Attributes:
        config: The configuration.
        folder: The run folder.
        dataset: The data set with its labels.
        plan: The plan.
        train_cases: Preprocessed training cases.
        val_cases: Held-out cases, as files.
    """

    config: Config
    folder: Path
    dataset: Dataset
    plan: Plan
    train_cases: tuple[CachedCase, ...]
    val_cases: tuple[Case, ...]

    @property
    def checkpoint_folder(self) -> Path:
        """Where the training state is kept."""
        return self.folder / CHECKPOINTS

    @property
    def postprocessing(self) -> Postprocessing:
        """What is done to the model's masks."""
        return Postprocessing.from_config(self.config.postprocess, self.plan.labels)


def prepare(config: Config, progress_bar: ProgressBar, *, resume: bool) -> Experiment:
    """Read the data set, make plan and split, preprocess the training cases and set up the run folder.

    Args:
        config: The configuration.
        progress_bar: Given what is being done, a context whose value is called with the finished and all cases.
        resume: Go on with the plan and the split of an interrupted run.

    Returns:
        The experiment.

    Raises:
        ConfigError: No data folder, or a value that does not fit the data.
        DataError: The data set or one of its cases cannot be used.
        OutputError: The run folder exists already, or cannot be written.
    """
    if config.data.root is None:
        raise ConfigError("no data set is given", hint="add data.root=FOLDER")
    dataset = read_dataset(config.data.root)
    Postprocessing.from_config(config.postprocess, dataset.labels)  # misspelt names show before anything is done
    read_overrides(config.plan)
    folder = Path(config.output)
    going_on = _open_run_folder(folder, resume)
    if going_on:
        plan, split = Plan.load(folder / "plan.json"), read_json(folder / "splits.json", "split")
    else:
        split = choose_split(dataset, config)
        with progress_bar("fingerprint") as progress:
            measured = fingerprint(dataset, progress, workers=config.data.workers)
        plan = make_plan(measured, config.plan)
        plan.save(folder / "plan.json")
        write_json(folder / "splits.json", split)
        save_config(config, folder / "config.yaml")
    chosen = _cases(dataset, split["train"])
    cache = Path(config.data.cache) if config.data.cache else folder.parent / "preprocessed"
    with progress_bar("preprocess") as progress:
        train_cases = cache_dataset(chosen, plan, cache, progress, workers=config.data.workers)
    logger.info("%d training and %d validation cases", len(split["train"]), len(split["val"]))
    return Experiment(config, folder, dataset, plan, tuple(train_cases), _cases(dataset, split["val"]))


def choose_split(dataset: Dataset, config: Config) -> dict[str, Any]:
    """The training and validation cases of this run's fold, as written to ``splits.json``.

    The folds do not depend on the run's seed, so that runs of several seeds are scored on the same cases; which few
    shots are taken does.
    """
    split = make_splits([case.id for case in dataset.cases], SPLIT_SEED)[config.data.fold]
    train = choose_shots(split["train"], config.data.shots, config.seed)
    return {"fold": config.data.fold, "train": train, "val": split["val"]}


def _open_run_folder(folder: Path, resume: bool) -> bool:
    """Make the run folder; whether there is a run to go on with.

    A run that was refused or stopped before its first step left nothing to lose: its folder is taken again.
    """
    started = (folder / "metrics.jsonl").exists()
    going_on = resume and has_checkpoint(folder / CHECKPOINTS)
    if started and not resume:
        raise OutputError(
            "there is a run in the output folder already",
            file=folder,
            hint="add --resume to go on with it, or choose another output=",
        )
    if resume and not going_on:
        logger.warning("--resume: no checkpoint in %s, the run starts anew", folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError("the output folder cannot be written", file=folder, found=error) from error
    return going_on


def _cases(dataset: Dataset, ids: list[str]) -> tuple[Case, ...]:
    by_id = {case.id: case for case in dataset.cases}
    missing = [name for name in ids if name not in by_id]
    if missing:
        raise DataError(
            "cases of the run's split are gone from the data set", file=dataset.root, found=", ".join(missing)
        )
    return tuple(by_id[name] for name in ids)
