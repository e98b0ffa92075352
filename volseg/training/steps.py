"""The steps of a run with its log, validations, checkpoints and orderly end; for training and for pretraining."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from volseg.config.schema import Config, TrainConfig
from volseg.errors import VolsegError, counted
from volseg.parallel import StageProgress
from volseg.training.checkpoint import RunProgress
from volseg.training.outcome import Outcomes, StepOutcome
from volseg.training.pace import Pace
from volseg.training.ranks import ALONE, RankLostError, Ranks, lost_ranks_named
from volseg.training.run_log import RunLog
from volseg.training.samples import batches
from volseg.training.schedule import Budget
from volseg.training.stop import StopSignals

logger = logging.getLogger(__name__)

LOG_EVERY = 20
"""Steps between lines of the training log."""
LENGTH_SELECTED = "the validated cases decided when training ended, so the scores of these cases are optimistic"


class SteppedState(Protocol):
    """The state of a run, as its steps change it."""

    @property
    def lr(self) -> float:
        """Highest learning rate of all parameter groups in the last step."""

    def step(self, batches: Sequence[dict[str, Any]], step: int, spent: float) -> StepOutcome:
        """Run one optimizer step, the completed fraction of the run given; skip it if it is not finite."""

    def save(self, folder: Path, progress: RunProgress) -> None:
        """Write the checkpoint in the first process, unless that of this step is the last one."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What the steps of a run work on.

    Attributes:
        config: The configuration.
        batch_size: Samples of a batch, in all processes.
        checkpoints: Folder of the checkpoints.
        state: State of the run.
        samples: Its samples.
        log: Its log.
        validate: Validates and logs; called with the progress and the time at which the run would have started without
            interruption (of `time.perf_counter`). ``None`` if there is nothing to validate on.
        ranks: The processes of the run.
    """

    config: Config
    batch_size: int
    checkpoints: Path
    state: SteppedState
    samples: Dataset[dict[str, Any]]
    log: RunLog
    validate: Callable[[RunProgress, float], None] | None = None
    ranks: Ranks = ALONE

    def is_validation_due(self, step: int) -> bool:
        """Return whether a validation follows a step."""
        return self.validate is not None and step > 0 and step % self.config.train.validate_every == 0


def run_steps(steps: Steps, run: RunProgress, progress: StageProgress | None = None) -> None:
    """Run until the budget is spent. Ctrl-C and SIGTERM end the run after the step, with a checkpoint.

    Args:
        steps: What the steps work on.
        run: Progress of the run, which is updated.
        progress: Called with the stage ``train``, finished steps and all steps (``None`` with a limit of time).

    Raises:
        OutputError: The disk is full; the checkpoints of before are kept.
        VolsegError: The loss was not finite in three steps in a row, or a worker died; the last checkpoint is from
            before.
    """
    ranks, outcomes, first_step = steps.ranks, Outcomes(run), run.step
    with StopSignals(ranks) as signals:
        try:
            with lost_ranks_named():
                for _ in training_steps(steps, run, outcomes, signals):
                    if progress is not None:
                        progress("train", run.step, steps.config.train.max_steps)
                _save(steps, run, outcomes, signals)
                signals.agree()
        except (KeyboardInterrupt, SystemExit, RankLostError):  # the step that a lost process ends changed no weights
            if run.step > first_step and ranks.is_first and not signals.forced:
                _save(steps, run, outcomes, signals)
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


def training_steps(steps: Steps, run: RunProgress, outcomes: Outcomes, signals: StopSignals) -> Iterator[None]:
    """Run step by step, with the log, validations and checkpoints that are due; yield after each step.

    Whether a step was finite is read when later ones have been started, and of all steps before a line of the log, a
    validation and a checkpoint. A signal interrupts neither a step nor the writing of a checkpoint, but a validation: a
    resumed run repeats it. Step, time and thus all decisions are the same in all processes.
    """
    settings, state, log, ranks = steps.config.train, steps.state, steps.log, steps.ranks
    budget = Budget.from_config(settings)
    pace = Pace(budget, steps.batch_size * settings.accumulate, run.step, run.elapsed_s)
    first_step = run.step
    started, saved_s = time.perf_counter() - run.elapsed_s, run.elapsed_s
    if steps.is_validation_due(run.step) and not log.is_validated(run.step):
        _validate(steps, run, signals, started)
    for step_batches in batches(steps.samples, steps.config, run.step, ranks):
        spent = budget.progress(run.step, run.elapsed_s)
        if spent >= 1:
            return
        if is_stalled(settings, log):
            validations = counted(settings.stop_after or 0, "validation")
            logger.warning("stopped after %s without improvement; %s", validations, LENGTH_SELECTED)
            return
        began_s = time.perf_counter()
        with signals.delayed():
            outcome = state.step(step_batches, run.step, spent)
            run.step += 1
            outcomes.add(outcome, step_batches)
            is_first = run.step == first_step + 1
            if is_first or run.step % LOG_EVERY == 0 or steps.is_validation_due(run.step):
                outcomes.record()
            if is_first:
                logger.info("the first step took %.1f s", time.perf_counter() - began_s)
            run.elapsed_s = ranks.largest(time.perf_counter() - started)
            if run.step % LOG_EVERY == 0 and run.losses:
                pace_text = pace.text(run.step, run.elapsed_s)
                log.train({**training_row(run, state.lr, pace.step_s), **outcome.parts}, pace_text)
                run.losses.clear()
            elif log.is_silent() and run.losses:
                log.running(training_row(run, state.lr), pace.text(run.step, run.elapsed_s))
        signals.agree()
        if steps.is_validation_due(run.step):
            trained_s = run.elapsed_s
            _validate(steps, run, signals, started)
            pace.skip(run.elapsed_s - trained_s)
        if is_checkpoint_due(settings, run, saved_s):
            _save(steps, run, outcomes, signals)
            saved_s = run.elapsed_s
        yield


def _save(steps: Steps, run: RunProgress, outcomes: Outcomes, signals: StopSignals) -> None:
    """Write a checkpoint, when the outcomes of all steps are known: a run that must end writes none."""
    with signals.delayed():
        outcomes.record()
        steps.state.save(steps.checkpoints, run)


def _validate(steps: Steps, run: RunProgress, signals: StopSignals, started: float) -> None:
    assert steps.validate is not None  # it is due
    with signals.interruptible():
        steps.validate(run, started)


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


def training_row(run: RunProgress, lr: float, step_s: float | None = None) -> dict[str, Any]:
    """Return one line of the training log: the mean loss of the steps that no line holds yet."""
    loss = round(torch.stack(run.losses).mean().item(), 6)
    row = {"step": run.step, "loss": loss, "lr": lr, "skipped": run.skipped, "elapsed_s": round(run.elapsed_s, 2)}
    return row if step_s is None else {**row, "step_s": round(step_s, 4)}
