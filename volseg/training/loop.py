"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from volseg.config.load import config_to_dict
from volseg.config.schema import TrainConfig
from volseg.errors import VolsegError, counted
from volseg.io.cases import listed
from volseg.io.model_file import save_model
from volseg.models.build import count_parameters, for_prediction
from volseg.models.lora import merged_state
from volseg.parallel import StageProgress
from volseg.training.checkpoint import RunProgress
from volseg.training.experiment import Experiment
from volseg.training.loggers import open_logger
from volseg.training.memory import prepare_memory
from volseg.training.over_time import ValidationSlices
from volseg.training.pace import Pace
from volseg.training.provenance import write_provenance
from volseg.training.ranks import ALONE, RankLostError, Ranks, lost_ranks_named
from volseg.training.resume import save_config
from volseg.training.run_log import RunLog
from volseg.training.samples import batches, training_samples
from volseg.training.schedule import Budget
from volseg.training.state import StepOutcome, TrainingState
from volseg.training.stop import StopSignals
from volseg.training.validation import validate
from volseg.version import __version__

logger = logging.getLogger(__name__)

LOG_EVERY = 20
"""Steps between lines of the training log."""
MODEL_FILE = "model.safetensors"
WEIGHTS_SELECTED = "these weights were the best on the validated cases, so the scores of these cases are optimistic"
LENGTH_SELECTED = "the validated cases decided when training ended, so the scores of these cases are optimistic"
MOST_FAILURES = 3
"""Steps in a row whose loss or gradient is not finite, after which a run ends."""


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
    log, first_step = RunLog(experiment.folder, run.step, writes=ranks.is_first, tracker=tracker), run.step
    with StopSignals(ranks) as signals:
        try:
            with lost_ranks_named():
                for _ in training_steps(experiment, state, run, samples, log, record, signals, ranks):
                    if progress is not None:
                        progress("train", run.step, experiment.config.train.max_steps)
                with signals.delayed():
                    state.save(experiment.checkpoint_folder, run)
                signals.agree()
        except (KeyboardInterrupt, SystemExit, RankLostError):  # the step that a lost process ends changed no weights
            if run.step > first_step and ranks.is_first and not signals.forced:
                with signals.delayed():
                    state.save(experiment.checkpoint_folder, run)
                logger.warning("stopped; the checkpoint of step %d is written", run.step)
            raise
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise VolsegError(
                "a worker process that loads patches died, most likely because the memory was full",
                found=error,
                hint="use fewer data.workers, or 0, and continue with --resume",
            ) from error
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


def training_steps(
    experiment: Experiment,
    state: TrainingState,
    run: RunProgress,
    samples: Dataset[dict[str, Any]],
    log: RunLog,
    record: dict[str, Any],
    signals: StopSignals,
    ranks: Ranks = ALONE,
) -> Iterator[None]:
    """Train step by step, with the log, validations and checkpoints that are due; yield after each step.

    A signal interrupts neither a step nor the writing of a checkpoint, but a validation: a resumed run repeats it.
    Step, time and thus all decisions are the same in all processes.
    """
    settings = experiment.config.train
    budget = Budget.from_config(settings)
    pace = Pace(budget, experiment.batch_size * settings.accumulate, run.step, run.elapsed_s)
    started, saved_s = time.perf_counter() - run.elapsed_s, run.elapsed_s
    if is_validation_due(experiment, run.step) and not log.is_validated(run.step):
        with signals.interruptible():
            run_validation(experiment, state, run, log, record, started, ranks)
    for step_batches in batches(samples, experiment.config, run.step, ranks):
        spent = budget.progress(run.step, run.elapsed_s)
        if spent >= 1:
            return
        if is_stalled(settings, log):
            validations = counted(settings.stop_after or 0, "validation")
            logger.warning("stopped after %s without improvement; %s", validations, LENGTH_SELECTED)
            return
        with signals.delayed():
            outcome = state.step(step_batches, run.step, spent)
            run.step += 1
            run.elapsed_s = ranks.largest(time.perf_counter() - started)
            record_outcome(outcome, step_batches, run)
            if run.step % LOG_EVERY == 0 and run.losses:
                pace_text = pace.text(run.step, run.elapsed_s)
                log.train(training_row(run, state.lr, pace.step_s), pace_text)
                run.losses.clear()
            elif log.is_silent() and run.losses:
                log.running(training_row(run, state.lr), pace.text(run.step, run.elapsed_s))
        signals.agree()
        if is_validation_due(experiment, run.step):
            trained_s = run.elapsed_s
            with signals.interruptible():
                run_validation(experiment, state, run, log, record, started, ranks)
            pace.skip(run.elapsed_s - trained_s)
        if is_checkpoint_due(settings, run, saved_s):
            with signals.delayed():
                state.save(experiment.checkpoint_folder, run)
            saved_s = run.elapsed_s
        yield


def is_checkpoint_due(settings: TrainConfig, run: RunProgress, saved_s: float) -> bool:
    """Return whether a checkpoint follows a step.

    Args:
        settings: Steps and minutes between checkpoints.
        run: Progress of the run.
        saved_s: Seconds of training and validation at the last checkpoint.
    """
    minutes = settings.checkpoint_minutes
    by_time = minutes is not None and run.elapsed_s - saved_s >= 60 * minutes
    return by_time or run.step % settings.checkpoint_every == 0


def is_stalled(settings: TrainConfig, log: RunLog) -> bool:
    """Return whether ``train.stop_after`` validations brought no improvement."""
    return settings.stop_after is not None and log.without_improvement() >= settings.stop_after


def is_validation_due(experiment: Experiment, step: int) -> bool:
    """Return whether a validation follows a step; without cases to validate on there is none."""
    settings = experiment.config.train
    has_cases = bool(experiment.val_cases) and settings.validate_cases > 0
    return has_cases and step > 0 and step % settings.validate_every == 0


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


def record_outcome(outcome: StepOutcome, step_batches: Sequence[dict[str, Any]], run: RunProgress) -> None:
    """Keep the loss of a step for the log, or log and count that it was skipped.

    Args:
        outcome: Outcome of the step.
        step_batches: Its batches, with the names of their cases.
        run: Progress of the run, this step included.

    Raises:
        VolsegError: This was the third step in a row that was skipped.
    """
    if outcome.is_finite:
        run.losses.append(outcome.loss)
        run.failures.clear()
        return
    cases = [name for batch in step_batches for name in batch["case"]]
    loss, norm = outcome.loss.item(), outcome.gradient_norm.item()
    run.failures.append(f"step {run.step}: loss {loss:.4g}, gradient norm {norm:.4g}, cases {listed(cases)}")
    run.skipped += 1
    logger.warning("a step was skipped, because loss or gradient is not finite: %s", run.failures[-1])
    if len(run.failures) >= MOST_FAILURES:
        raise VolsegError(
            f"loss or gradient was not finite in {MOST_FAILURES} steps in a row",
            found="\n    ".join(["", *run.failures]),
            hint="look at these cases; if they are sound, start a new run with a lower train.lr in another output=",
        )


def training_row(run: RunProgress, lr: float, step_s: float | None = None) -> dict[str, Any]:
    """Return one line of the training log: the mean loss of the steps that no line holds yet."""
    loss = round(torch.stack(run.losses).mean().item(), 6)
    row = {"step": run.step, "loss": loss, "lr": lr, "skipped": run.skipped, "elapsed_s": round(run.elapsed_s, 2)}
    return row if step_s is None else {**row, "step_s": round(step_s, 4)}


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
