"""Training a model, and scoring its held-out cases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.api.arguments import PathLike, check_overrides, check_type
from volseg.api.evaluation import evaluate
from volseg.api.prediction import predict
from volseg.api.results import EvaluationResult, TrainingResult

if TYPE_CHECKING:
    from volseg.config.schema import Config
    from volseg.parallel import StageProgress
    from volseg.training.experiment import Experiment
    from volseg.training.ranks import Ranks

MASKS, SCORES = "validation/masks", "validation/scores"
"""Folders of a run: the masks of its held-out cases, and their scores."""


def train(
    config: PathLike | Mapping[str, Any] | Config | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool | PathLike = False,
    progress: StageProgress | None = None,
) -> TrainingResult:
    """Train a model on a data set, then predict and score the held-out cases.

    In a script that ``torchrun`` started, its processes train one model together.

    Args:
        config: YAML file, name of a configuration of the package (``gpu``, ``cpu``), nested mapping or configuration;
            ``None`` starts from the defaults, or from the resumed run.
        overrides: ``key=value`` strings that override it, such as ``data.root=DIR`` or ``train.max_minutes=30``.
        resume: Continue the interrupted run in this folder, or with ``True`` in the folder ``output``. What is not
            given is taken from the run; of a file or name, only settings that may not change are compared.
        progress: Called with a stage (``fingerprint``, ``preprocess``, ``tokens``, ``train``, ``predict``,
            ``evaluate``) and the number of finished and of all cases or steps.

    Raises:
        ConfigError: A setting is invalid, does not fit the data, or is not that of the resumed run.
        DataError: The data set or one of its cases cannot be used, or changed since the resumed run began.
        ModelFileError: The weight file or the checkpoint cannot be used.
        OutputError: The run folder exists already, or cannot be written.
        RankLostError: Another process of ``torchrun`` has ended, which shows the error. Errors before the first step
            are raised in all processes.
    """
    from volseg.config.schema import Config
    from volseg.inference.cohort.shard import torchrun_rank

    check_type("config", config, str, Path, Mapping, Config, type(None))
    check_type("resume", resume, bool, str, Path)
    check_overrides(overrides)
    several = torchrun_rank(os.environ) is not None
    early = None if several else run_settings(config, overrides, resume)  # before torch is imported

    from volseg.training.experiment import prepare_together
    from volseg.training.ranks import joined_ranks

    with joined_ranks(os.environ) as ranks, ExitStack() as held:
        with ranks.together():
            settings = early or run_settings(config, overrides, resume)
        experiment = held.enter_context(prepare_together(settings, progress, ranks, resume=bool(resume)))
        with ranks.together():
            finished = _finished(experiment) if ranks.is_first and experiment.resumed else None
        finished = ranks.from_first(finished)
        if finished is not None:
            return finished

        from volseg.device import deterministic_algorithms, full_float32
        from volseg.training.loop import train as train_model  # takes seconds: what is invalid shows before

        if ranks.is_first and experiment.measured is not None:
            from volseg.report.overview import write_overview

            write_overview(experiment.folder / "plan.png", experiment.measured)
        with deterministic_algorithms(settings.deterministic), full_float32():
            model_file = train_model(experiment, progress, ranks)
        scores, failed = _score_held_out(experiment, model_file, progress, ranks)
    return TrainingResult(model_file=model_file, folder=experiment.folder, scores=scores, failed=failed)


def _finished(experiment: Experiment) -> TrainingResult | None:
    """Return the result of a run that lacks nothing, and log so; ``None`` if there is something left to do."""
    import logging

    from volseg.config.load import config_from_dict
    from volseg.crossvalidation.folds import Fold
    from volseg.errors import ModelFileError
    from volseg.io.model_file import read_metadata
    from volseg.training.resume import MAY_CHANGE, changes

    held_out = tuple(case.id for case in experiment.val_cases)
    run = Fold(number=0, config=experiment.config, held_out=held_out)
    try:
        if run.lacks() is not None or (held_out and not (run.folder / SCORES / "scores.json").exists()):
            return None
    except ModelFileError:  # damaged: it is written again, from the checkpoint
        return None
    trained = config_from_dict(read_metadata(run.model_file)["config"], origin=run.model_file)
    differing = [change.key for change in changes(trained, experiment.config) if not change.key.startswith("model.")]
    if {*differing} - MAY_CHANGE.keys():  # the checkpoint refuses them, and those of the network
        return None
    failed = tuple(sorted({*held_out} - run.mask_files().keys())) if held_out else ()
    where = f"; its scores are in {run.folder / SCORES}" if held_out else ""
    logging.getLogger(__name__).info("this run is finished already%s", where)
    return TrainingResult(model_file=run.model_file, folder=run.folder, scores=None, failed=failed)


def run_settings(
    config: PathLike | Mapping[str, Any] | Config | None, overrides: Sequence[str], resume: bool | PathLike
) -> Config:
    """Return the configuration of a run that starts, or is resumed."""
    from volseg.config.load import given_values, load_config

    if not resume:
        return load_config(config, overrides)
    given_values(config, overrides)
    from volseg.training.resume import config_to_resume

    return config_to_resume(config, overrides, None if resume is True else Path(resume))


def _score_held_out(
    experiment: Experiment, model_file: Path, progress: StageProgress | None, ranks: Ranks
) -> tuple[EvaluationResult | None, tuple[str, ...]]:
    """Predict the held-out cases in all processes of a run, and score them in the first.

    Returns:
        The scores, and the cases that could not be predicted; in the other processes none.

    Raises:
        VolsegError: No case could be predicted.
    """
    from volseg.errors import VolsegError

    folder, cases, device = experiment.folder, experiment.val_cases, experiment.config.device
    if not cases:
        return None, ()
    device, masks, shard = ranks.device(device), folder / MASKS, ranks.shard
    summary = predict(model_file, cases, masks, device=device, shard=shard, overwrite=True, progress=progress)
    own = [record.case for record in summary.results if record.status == "failed"]
    failed = tuple(case for of_rank in ranks.gathered(own) for case in of_rank)
    if not ranks.is_first:
        return None, ()
    if len(failed) == len(cases):
        hint = "the errors are in this file; the model is trained, and volseg predict can use it"
        raise VolsegError("no held-out case could be predicted", file=summary.path, hint=hint)
    scores = evaluate(
        {experiment.folder.name: masks},
        {case.id: case.label for case in cases if case.label is not None and case.id not in failed},
        folder / SCORES,
        labels=experiment.plan.label_map,
        images={case.id: case.images[0] for case in cases},
        grids=cases[0].grids,
        progress=progress,
    )
    return scores, failed
