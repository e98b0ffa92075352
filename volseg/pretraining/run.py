"""Pretraining from its start to the file of the encoder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from volseg.device import training_dtype
from volseg.errors import counted
from volseg.io.content import file_sha256
from volseg.io.encoder_file import save_encoder
from volseg.models.build import count_parameters
from volseg.models.start import weight_file
from volseg.parallel import StageProgress
from volseg.pretraining.experiment import Pretraining
from volseg.pretraining.measures import measure
from volseg.pretraining.picture import draw_pretraining
from volseg.pretraining.schedules import teacher_temperature
from volseg.pretraining.state import PretrainingState
from volseg.pretraining.views import SliceViews
from volseg.training.checkpoint import RunProgress
from volseg.training.loggers import open_logger
from volseg.training.loop import MODEL_FILE
from volseg.training.provenance import parameter_text, provenance, read_provenance, write_record
from volseg.training.ranks import ALONE, Ranks
from volseg.training.resume import save_config
from volseg.training.run_log import RunLog, Validation
from volseg.training.samples import ENDLESS
from volseg.training.schedule import Budget
from volseg.training.steps import Steps, run_steps

logger = logging.getLogger(__name__)

OBJECTIVE = "dinov2"
SCORE = "val_rankme"


def pretrain(experiment: Pretraining, progress: StageProgress | None = None, ranks: Ranks = ALONE) -> Path:
    """Pretrain until the budget is spent. Ctrl-C and SIGTERM end the run after the step, with a checkpoint.

    Args:
        experiment: Scans and configuration.
        progress: Called with the stage ``train``, finished steps and all steps (``None`` with a limit of time).
        ranks: The processes of the run, which share out every batch; the first writes all files.

    Returns:
        The file of the teacher's encoder, which ``model.weights`` takes.

    Raises:
        VolsegError: As `volseg.training.loop.train`.
    """
    config, folder = experiment.config, experiment.folder
    start = None if experiment.resumed else weight_file(config.model)
    state = PretrainingState(config, start, ranks)
    with ranks.together():
        run = state.restore(experiment.checkpoint_folder) if experiment.resumed else RunProgress()
    if ranks.from_first(_is_finished(experiment, state, run)):
        logger.info("this run is finished already")
        return folder / MODEL_FILE
    record = _write_start(experiment, state, start, ranks) if ranks.is_first else {}
    samples: Any = SliceViews(
        experiment.train, experiment.shape, seed=config.seed, batch_size=experiment.batch_size, samples=ENDLESS
    )
    tracker = open_logger(config, folder) if ranks.is_first else None
    shown = Validation(SCORE, validation_text, draw_pretraining)
    log = RunLog(folder, run.step, writes=ranks.is_first, tracker=tracker, validation=shown)

    def validation(run: RunProgress, started: float) -> None:
        log.validation(_measured(experiment, state, run, started, ranks))

    has_scans = bool(experiment.held_out)
    if not has_scans and ranks.is_first:
        logger.warning("no scan is held out: the log has no measures that tell a collapse")
    steps = Steps(
        config=config,
        batch_size=experiment.batch_size,
        checkpoints=experiment.checkpoint_folder,
        state=state,
        samples=samples,
        log=log,
        validate=validation if has_scans else None,
        ranks=ranks,
    )
    if has_scans and not log.is_validated(0) and run.step == 0:
        validation(run, time.perf_counter())  # what the start knows already
    run_steps(steps, run, progress)
    if ranks.is_first:
        if has_scans and not log.is_validated(run.step):
            validation(run, time.perf_counter() - run.elapsed_s)
        log.close()
        save_encoder(folder / MODEL_FILE, state.teacher.encoder.state_dict(), {**record, **_result(run)})
    ranks.wait()
    return folder / MODEL_FILE


def _is_finished(experiment: Pretraining, state: PretrainingState, run: RunProgress) -> bool:
    """Return whether a resumed run has nothing left to do."""
    spent = Budget.from_config(experiment.config.train).progress(run.step, run.elapsed_s)
    return experiment.resumed and not state.changes and spent >= 1 and (experiment.folder / MODEL_FILE).exists()


def _measured(
    experiment: Pretraining, state: PretrainingState, run: RunProgress, started: float, ranks: Ranks
) -> dict[str, Any]:
    """Return a row of the log: every process measures the same, because all have the same weights."""
    config, held_out = experiment.config, experiment.held_out
    spent = Budget.from_config(config.train).progress(run.step, run.elapsed_s)
    temperature = teacher_temperature(config.pretrain.teacher_temperature, spent)
    known = experiment.train[: config.train.validate_cases]
    row = measure(state, experiment.shape, known, held_out, temperature)
    run.elapsed_s = max(run.elapsed_s, time.perf_counter() - started)
    return {"step": run.step, **row, "val_cases": len(held_out), "elapsed_s": round(run.elapsed_s, 1)}


def validation_text(row: Mapping[str, Any]) -> str:
    """Return a row of measures as text."""
    axis = "" if row["val_axis_accuracy"] is None else f", axis {row['val_axis_accuracy']:.0%} right"
    return (
        f"rank {row['val_rankme']:.1f} (centred {row['val_effective_rank']:.1f}), assignments: entropy "
        f"{row['val_assignment_entropy']:.2f}, divergence {row['val_assignment_kl']:.2f}; position error "
        f"{row['val_position_error']:.3f} (mean position {row['val_position_error_of_mean']:.3f}){axis} "
        f"({counted(row['val_cases'], 'scan')})"
    )


def _write_start(experiment: Pretraining, state: PretrainingState, start: Path | None, ranks: Ranks) -> dict[str, Any]:
    """Write the provenance of the run; return what the file of the encoder tells of it."""
    config, path = experiment.config, experiment.folder / "provenance.json"
    parameters = count_parameters(state.student)
    logger.info("parameters: %s", parameter_text(parameters))
    sha256 = None if start is None else file_sha256(start)
    precision = training_dtype(config.precision, state.device)
    record = provenance(config.seed, experiment.data_sha256, sha256, parameters, precision)
    record |= {"processes": ranks.size, "pretraining": _described(experiment)}
    former = read_provenance(path) if experiment.resumed else None
    record = write_record(path, record, former, state.changes)
    if state.changes:
        save_config(config, experiment.folder)
    kept = ("volseg", "commit", "created", "command", "seed", "data_hash", "weights_sha256", "precision")
    return {**_described(experiment), **{name: record.get(name) for name in kept}}


def _described(experiment: Pretraining) -> dict[str, Any]:
    """Return data, start and settings of a run, without the names of scans, which may identify patients."""
    config = experiment.config
    return {
        "objective": OBJECTIVE,
        "encoder": config.model.encoder,
        "data": experiment.split.name,
        "scans": len(experiment.train),
        "start": config.model.weights,
        "settings": {"pretrain": asdict(config.pretrain), "train": asdict(config.train)},
        "views": asdict(experiment.shape),
    }


def _result(run: RunProgress) -> dict[str, Any]:
    return {"steps": run.step, "elapsed_s": round(run.elapsed_s, 1), "skipped": run.skipped}
