"""Training from its start to the model file."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from volseg.config.load import config_to_dict
from volseg.io.model_file import save_model
from volseg.models.build import count_parameters, for_prediction
from volseg.models.lora import merged_state
from volseg.parallel import StageProgress
from volseg.training.checkpoint import RunProgress
from volseg.training.experiment import Experiment
from volseg.training.loggers import open_logger
from volseg.training.memory import prepare_memory
from volseg.training.over_time import ValidationSlices
from volseg.training.provenance import write_provenance
from volseg.training.ranks import ALONE, Ranks
from volseg.training.resume import save_config
from volseg.training.run_log import RunLog
from volseg.training.samples import training_samples
from volseg.training.state import TrainingState
from volseg.training.steps import LENGTH_SELECTED, Steps, is_stalled, run_steps
from volseg.training.validation import validate
from volseg.version import __version__

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
WEIGHTS_SELECTED = "these weights were the best on the validated cases, so the scores of these cases are optimistic"


def train(experiment: Experiment, progress: StageProgress | None = None, ranks: Ranks = ALONE) -> Path:
    """Train until the budget is spent. Ctrl-C and SIGTERM end the run after the step, with a checkpoint.

    Args:
        experiment: Data, plan and configuration.
        progress: Called with the stage ``train``, finished steps and all steps (``None`` with a limit of time).
        ranks: The processes of the run. They share out every batch and every validation, and stop after the same step;
            the first writes all files.

    Returns:
        The model file, with the averaged weights.

    Raises:
        ConfigError: The configuration does not fit the checkpoint, or the run has no end.
        ModelFileError: Weight file or checkpoint cannot be used.
        OutputError: The disk is full; the checkpoints of before are kept.
        VolsegError: The loss was not finite in three steps in a row, or a worker died; the last checkpoint is from
            before.
    """
    prepare_memory(experiment.config, experiment.plan, ranks)
    state = TrainingState(experiment.config, experiment.plan, ranks, read_weights=not experiment.resumed)
    with ranks.together():
        run = state.restore(experiment.checkpoint_folder) if experiment.resumed else RunProgress()
    record = write_start(experiment, state, ranks)
    samples = training_samples(experiment, state.model, progress, ranks)
    tracker = open_logger(experiment.config, experiment.folder) if ranks.is_first else None
    log = RunLog(experiment.folder, run.step, writes=ranks.is_first, tracker=tracker)

    def validation(run: RunProgress, started: float) -> None:
        run_validation(experiment, state, run, log, record, started, ranks)

    has_cases = bool(experiment.val_cases) and experiment.config.train.validate_cases > 0
    steps = Steps(
        config=experiment.config,
        batch_size=experiment.batch_size,
        checkpoints=experiment.checkpoint_folder,
        state=state,
        samples=samples,
        log=log,
        validate=validation if has_cases else None,
        ranks=ranks,
    )
    run_steps(steps, run, progress)
    if ranks.is_first:
        log.close()
        selection = LENGTH_SELECTED if is_stalled(experiment.config.train, log) else None
        write_model(experiment, state.average.model, record, run, MODEL_FILE, selection)
    ranks.wait()
    return experiment.folder / MODEL_FILE


def write_start(experiment: Experiment, state: TrainingState, ranks: Ranks) -> dict[str, Any]:
    """Write, in the first process, the provenance of the run and the settings that a resumed run changes.

    Returns:
        The provenance; empty in the other processes, which write no model.
    """
    if not ranks.is_first:
        return {}
    record = write_provenance(experiment, count_parameters(state.model), state.changes, ranks.size, state.model.start)
    if state.changes:
        save_config(experiment.config, experiment.folder)
    return record


def run_validation(
    experiment: Experiment,
    state: TrainingState,
    run: RunProgress,
    log: RunLog,
    record: dict[str, Any],
    started: float,
    ranks: Ranks,
) -> None:
    """Validate and log; write the weights if they are the best so far and ``train.keep_best`` asks for them."""
    settings = experiment.config.train
    slices = ValidationSlices(experiment.folder / "validation", run.step, experiment.plan.orientation)
    cases, show = settings.validate_cases, slices.show if ranks.is_first else None
    row = validate(state.average.model, experiment, state.device, cases, log.validating, ranks, show)
    run.elapsed_s = ranks.largest(time.perf_counter() - started)
    if row["val_dice"] > run.best_dice:
        run.best_dice = row["val_dice"]
        if settings.keep_best and ranks.is_first:
            logger.info("model_best.safetensors is of step %d; %s", run.step, WEIGHTS_SELECTED)
            write_model(experiment, state.average.model, record, run, "model_best.safetensors", WEIGHTS_SELECTED)
    log.validation({"step": run.step, **row, "elapsed_s": round(run.elapsed_s, 1)})
    if ranks.is_first:
        slices.write()


def write_model(
    experiment: Experiment,
    model: nn.Module,
    record: dict[str, Any],
    run: RunProgress,
    name: str,
    selection: str | None = None,
) -> Path:
    """Write a model file into the run folder; ``selection`` says how the held-out cases had a part in its weights.

    It holds what prediction needs: LoRA's matrices merged into the weights they belong to, and the configuration of
    that network. ``training`` keeps the one it was trained as, and its parameter counts.
    """
    path = experiment.folder / name
    trained = experiment.config.model
    metadata = {
        "config": config_to_dict(replace(experiment.config, model=for_prediction(trained))),
        "plan": replace(experiment.plan, cases=()).to_dict(),  # names of cases may identify patients
        "labels": experiment.plan.labels,
        "postprocessing": experiment.postprocessing.to_dict(),
        "versions": {"volseg": __version__, "torch": torch.__version__},
        "training": {**record, "model": asdict(trained), **run.numbers(), "selection": selection},
    }
    save_model(path, merged_state(model), metadata)
    return path
