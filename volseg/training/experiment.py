"""Preparation of a training run: checks, run folder, plan, split and preprocessed cases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from volseg.config.schema import Config
from volseg.data.split_rules import choose_split
from volseg.device import choose_device, training_dtype
from volseg.errors import ConfigError, counted
from volseg.io.cases import GridRule
from volseg.io.datasets import Case, Dataset, read_dataset
from volseg.io.findings import errors_of
from volseg.io.json_files import write_json
from volseg.models.build import check_attention
from volseg.models.start import weight_file
from volseg.parallel import StageProgress, stage_progress
from volseg.planning.examine import FILE_NAME as FINDINGS
from volseg.planning.examine import examine, write_findings
from volseg.planning.fingerprint import Fingerprint, survey
from volseg.planning.from_model import plan_of_model
from volseg.planning.plan import Plan
from volseg.planning.ready import ready_plan
from volseg.planning.settings import PlanSettings
from volseg.postprocessing.rules import Postprocessing
from volseg.preprocessing.cache import CachedCase, cache_dataset, cache_in_use, plan_folder
from volseg.training.checkpoint import CHECKPOINTS, has_checkpoint
from volseg.training.inputs import PLAN_FILE, SPLIT_FILE, read_inputs, write_inputs
from volseg.training.loggers import check_logger
from volseg.training.losses import read_class_weights
from volseg.training.memory import memory_budget
from volseg.training.ranks import Ranks, share_of_batch
from volseg.training.resume import save_config
from volseg.training.run_folder import run_folder
from volseg.training.schedule import Budget

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """Data, plan and configuration of a run.

    Attributes:
        config: The configuration.
        folder: The run folder.
        dataset: The data set with its labels.
        plan: The plan.
        train_cases: Preprocessed training cases.
        val_cases: Held-out cases, as files; none with ``data.fold=all``.
        resumed: Whether it continues an interrupted run from its checkpoint.
        measured: The measurements that the plan was made of; ``None`` if the plan was read from a file.
    """

    config: Config
    folder: Path
    dataset: Dataset
    plan: Plan
    train_cases: tuple[CachedCase, ...]
    val_cases: tuple[Case, ...]
    resumed: bool = False
    measured: Fingerprint | None = None

    @property
    def batch_size(self) -> int:
        """Patches per step."""
        return self.config.train.batch_size or self.plan.batch_size

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / CHECKPOINTS

    @property
    def postprocessing(self) -> Postprocessing:
        """Postprocessing of the model's masks."""
        return Postprocessing.from_config(self.config.postprocess, self.plan.label_map)


@contextmanager
def prepare(
    config: Config, progress: StageProgress | None = None, *, resume: bool = False, processes: int = 1
) -> Iterator[Experiment]:
    """Read the data set, make plan and split, preprocess the training cases and set up the run folder.

    The run folder is locked until the block ends.

    Args:
        config: The configuration.
        progress: Called with the stages ``fingerprint`` and ``preprocess`` and the number of finished and of all cases.
        resume: Continue an interrupted run with its plan and split; without a checkpoint the run starts anew.
        processes: Number of processes that will share out each batch.

    Yields:
        The experiment.

    Raises:
        ConfigError: No data folder, a setting that cannot work here, a value that does not fit the data, or a file of
            the resumed run is missing or changed.
        DataError: The data set or one of its cases cannot be used, or is not as it was when the run began.
        ModelFileError: The weight file does not exist, or cannot be downloaded.
        OutputError: There is a run in the folder already, another process trains there, or it cannot be written.
    """
    folder = Path(config.output)
    resumed = resume and has_checkpoint(folder / CHECKPOINTS)
    check_settings(config, resumed=resumed)
    if config.train.batch_size is not None:
        share_of_batch(config.train.batch_size, processes)
    dataset = dataset_of(config, resumed=resumed)
    label_map = dataset.label_map
    Postprocessing.from_config(config.postprocess, label_map)  # fail early on misspelt class names
    if label_map.classes:
        read_class_weights(config.train.class_weights, label_map.class_names, background=not label_map.regions)
    with (
        run_folder(folder, "volseg train", resume=resume, resumed=resumed),
        _experiment(config, dataset, progress, resumed=resumed, processes=processes) as experiment,
    ):
        yield experiment


def dataset_of(config: Config, *, resumed: bool) -> Dataset:
    """Find the cases of a configuration's data set; without a plan to make, what is wrong with them is an error here.

    Raises:
        ConfigError: No data folder is given.
        DataError: The data set cannot be used.
    """
    data = config.data
    if data.root is None:
        raise ConfigError("no data set is given", hint="add data.root=FOLDER")
    grids = GridRule(data.grid_tolerance_mm, label_takes_image_grid=data.accept_header_of == "image")
    ready = PlanSettings.read(config.plan).file is not None
    return read_dataset(data.root, strict=resumed or ready, grids=grids)


@contextmanager
def prepare_together(
    config: Config, progress: StageProgress | None, ranks: Ranks, *, resume: bool = False
) -> Iterator[Experiment]:
    """Prepare a run in the first process, which holds the run folder; the others wait and receive the experiment.

    Args:
        config: The configuration.
        progress: As in :func:`prepare`.
        ranks: The processes of the run.
        resume: As in :func:`prepare`.

    Yields:
        The experiment.

    Raises:
        VolsegError: As :func:`prepare`, in all processes.
    """
    with ranks.held_by_first(
        lambda: prepare(config, progress, resume=resume, processes=ranks.size),
        sent=lambda experiment: replace(experiment, measured=None),
    ) as experiment:
        yield experiment


@contextmanager
def _experiment(
    config: Config, dataset: Dataset, progress: StageProgress | None, *, resumed: bool, processes: int
) -> Iterator[Experiment]:
    """Make plan and split, or read those of the resumed run, and preprocess the training cases.

    The cases in the cache are protected from removal until the block ends.
    """
    folder, workers, measured = Path(config.output), config.data.workers, None
    if resumed:
        dataset, plan, split = read_inputs(folder, dataset, config)
        config = _with_batch(config, plan)
    else:
        # before the cases are read, which takes time; a data set with missing files is refused below, with all findings
        split = {} if errors_of(dataset.findings) else choose_split(dataset, config.data, config.seed)
        plan, measured = plan_of(config, dataset, progress)
        config = _with_batch(config, plan)
        share_of_batch(config.train.batch_size or plan.batch_size, processes)
        plan.save(folder / PLAN_FILE)
        write_json(folder / SPLIT_FILE, split)
        save_config(config, folder)
    cache = Path(config.data.cache) if config.data.cache else folder.parent / "preprocessed"
    with cache_in_use(plan_folder(cache, plan)):
        preprocess_progress = stage_progress(progress, "preprocess")
        logger.info("preprocessing %s, unless they are in the cache", counted(len(split["train"]), "training case"))
        train_cases = cache_dataset(_cases(dataset, split["train"]), plan, cache, preprocess_progress, workers=workers)
        if not resumed:
            write_inputs(folder, dataset, workers, train_cases)
        trained, held_out = counted(len(split["train"]), "training case"), counted(len(split["val"]), "validation case")
        logger.info("%s, %s", trained, held_out)
        val_cases = _cases(dataset, split["val"])
        yield Experiment(config, folder, dataset, plan, tuple(train_cases), val_cases, resumed, measured)


def plan_of(config: Config, dataset: Dataset, progress: StageProgress | None) -> tuple[Plan, Fingerprint | None]:
    """Read the ready plan of a configuration, or measure the cases, write the findings and make a plan.

    Args:
        config: The configuration; the findings are written to its ``output``.
        dataset: The data set.
        progress: Called with the stage ``fingerprint``.

    Returns:
        The plan, and what was measured; ``None`` for a ready plan.

    Raises:
        ConfigError: The ready plan does not fit the data set.
        DataError: Some cases cannot be used.
    """
    batch = {} if config.train.batch_size is None else {"batch_size": config.train.batch_size}
    settings = PlanSettings.read(config.plan | batch)
    if settings.file is not None:
        return ready_plan(settings.file, settings.overrides, dataset), None
    if settings.model is not None:
        plan_of_model(settings.model, len(dataset.channels))  # before the cases are measured, which takes time
    measured = survey(dataset, stage_progress(progress, "fingerprint"), workers=config.data.workers)
    examination = examine(measured, settings.overrides, memory_budget(config, settings), settings.model)
    plan = examination.checked()
    write_findings(Path(config.output) / FINDINGS, examination.findings)
    return plan, examination.fingerprint


def _with_batch(config: Config, plan: Plan) -> Config:
    """Return the configuration with the plan's batch size, if it states none."""
    size = config.train.batch_size or plan.batch_size
    return replace(config, train=replace(config.train, batch_size=size))


def check_settings(config: Config, *, resumed: bool) -> None:
    """Fail fast on settings that are invalid for any data set; official weights are downloaded.

    Raises:
        ConfigError: The run has no end, or the device, attention kernel or weights are not available.
        ModelFileError: The weight file does not exist, or cannot be downloaded.
    """
    Budget.from_config(config.train)
    check_logger(config.train.logger)
    device = choose_device(config.device)
    check_attention(config.model, device, training_dtype(config.precision, device))
    if not resumed:
        weight_file(config.model)


def _cases(dataset: Dataset, ids: list[str]) -> tuple[Case, ...]:
    by_id = {case.id: case for case in dataset.cases}
    return tuple(by_id[name] for name in ids)
