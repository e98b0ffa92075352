"""The Python interface: plan, check, train, crossval, predict, evaluate, convert, download and load.

The commands call these functions.
Importing this module is cheap; a function imports what it needs when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volseg.config.schema import Config
    from volseg.crossvalidation.folds import Fold
    from volseg.evaluation.choose_postprocessing import Choice
    from volseg.evaluation.results import Evaluation
    from volseg.inference.cohort.records import Summary
    from volseg.inference.predictor import Predictor
    from volseg.io.cases import GridRule
    from volseg.io.datasets import Dataset
    from volseg.io.findings import Finding
    from volseg.io.labels import LabelMap
    from volseg.metrics.pair import HdMode
    from volseg.parallel import StageProgress
    from volseg.planning.examine import Examination
    from volseg.planning.plan import Plan
    from volseg.postprocessing.rules import Postprocessing
    from volseg.training.experiment import Experiment
    from volseg.training.ranks import Ranks

PathLike = str | Path


def _check_type(argument: str, value: object, *types: type) -> None:
    """Check an argument at the border, before it fails somewhere inside.

    Raises:
        ConfigError: It is of another type.
    """
    from volseg.errors import ConfigError

    if not isinstance(value, types):
        expected = " or ".join("None" if one is type(None) else one.__name__ for one in types)
        problem = f"the argument {argument} has the wrong type"
        raise ConfigError(problem, found=f"{value!r:.80} ({type(value).__name__})", expected=expected)


def _check_overrides(overrides: object) -> None:
    _check_type("overrides", overrides, list, tuple)
    for item in overrides if isinstance(overrides, list | tuple) else ():
        _check_type("overrides", item, str)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores of one or several methods.

    Attributes:
        evaluation: The scores of every method, case and class.
        summary: Means with intervals, counts and comparisons, as written to ``scores.json``.
        table: The tables of ``scores.md`` as text.
        files: The files that were written.
    """

    evaluation: Evaluation
    summary: dict[str, Any]
    table: str
    files: tuple[Path, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if every case was predicted and scored, 1 if a prediction is missing or a case failed, 2 if all failed."""
        if len(self.evaluation.failed) == len(self.evaluation.results):
            return 2
        return 1 if self.evaluation.failed or self.evaluation.missing else 0


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A finished run.

    Attributes:
        model_file: The trained model.
        folder: The run folder.
        scores: Scores of the held-out cases, also in ``validation/scores/``; ``None`` if no case is held out, and in
            all processes of ``torchrun`` but the first.
        failed: Held-out cases that could not be predicted; they are not scored.
    """

    model_file: Path
    folder: Path
    scores: EvaluationResult | None
    failed: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """That of the scores, and at least 1 if a held-out case could not be predicted."""
        return max(self.scores.exit_code if self.scores is not None else 0, 1 if self.failed else 0)


@dataclass(frozen=True, kw_only=True)
class CrossvalResult:
    """A finished cross-validation.

    Attributes:
        folder: Its folder, which is also the ensemble that :func:`predict` and :func:`load` take.
        folds: Numbers of the folds of the ensemble.
        scores: Scores of all out-of-fold masks together, also in ``validation/``; with the chosen postprocessing as a
            second method, if there is one.
        fold_table: Mean scores of each fold and of all cases, as text.
        choice: The chosen postprocessing, and what was tried.
        failed: Held-out cases that could not be predicted; they are not scored.
    """

    folder: Path
    folds: tuple[int, ...]
    scores: EvaluationResult
    fold_table: str
    choice: Choice
    failed: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """That of the scores, and at least 1 if a held-out case could not be predicted."""
        return max(self.scores.exit_code, 1 if self.failed else 0)


@dataclass(frozen=True, kw_only=True)
class PlanningResult:
    """A checked data set and its plan.

    Attributes:
        plan: The plan, with the reason of each decision.
        examination: The measurements, and what was found in the cases.
        config: The configuration whose network is counted.
        files: The files that were written: the plan and the picture of the data set.
    """

    plan: Plan
    examination: Examination
    config: Config
    files: tuple[Path, ...] = ()

    @property
    def summary(self) -> str:
        """What the data set is, its ranges, each decision with its reason, what looks odd, and the cost of a step."""
        from volseg.config.sizes import format_size
        from volseg.planning.summary import summary_text
        from volseg.training.memory import network_name, step_memory

        measured, plan = self.examination.usable()
        needed = format_size(step_memory(self.config, plan, plan.batch_size).total)
        patches, network = f"{plan.batch_size} patch{'es' * (plan.batch_size > 1)}", network_name(self.config)
        cost = f"A training step of {patches} needs about {needed} in float32 with the network {network}."
        return f"{summary_text(measured, plan, self.examination.findings)}\n\n{cost}"


def plan(
    dataset: PathLike,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    memory: str | None = None,
    out: PathLike | None = None,
    grid_tolerance_mm: float = 0.01,
    accept_header_of: str | None = None,
    workers: int = 2,
    progress: StageProgress | None = None,
) -> Plan:
    """Check every case of a data set and derive the plan that training uses; warnings are logged.

    Arguments and errors are those of :func:`plan_dataset`, which also returns what was measured.
    """
    result = plan_dataset(
        dataset,
        overrides,
        memory=memory,
        out=out,
        grid_tolerance_mm=grid_tolerance_mm,
        accept_header_of=accept_header_of,
        workers=workers,
        progress=progress,
    )
    return result.examination.checked()


def plan_dataset(
    dataset: PathLike,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    config: PathLike | Config | None = None,
    memory: str | None = None,
    out: PathLike | None = None,
    grid_tolerance_mm: float = 0.01,
    accept_header_of: str | None = None,
    workers: int = 2,
    progress: StageProgress | None = None,
) -> PlanningResult:
    """Check every case of a data set and derive the plan that training uses.

    Args:
        dataset: Data set folder, or a CSV of cases (:func:`volseg.io.datasets.read_dataset` lists the layouts).
        overrides: Fields of the plan that are set by hand: ``["plan.token_stride=4"]`` or ``{"token_stride": 4}``. As
            text, also settings of the network, whose memory is estimated.
        config: YAML file, name of a configuration of the package (``gpu``) or configuration with the settings of the
            network; ``None`` takes the defaults.
        memory: Limit of the memory of a training step, such as ``"8GB"``, the same as ``plan.memory``.
        out: File to write the plan to; the picture of the data set is written beside it, with the ending ``.png``.
        grid_tolerance_mm: As the setting ``data.grid_tolerance_mm``.
        accept_header_of: As the setting ``data.accept_header_of``.
        workers: Processes that read cases.
        progress: Called with the stage ``fingerprint`` and the number of finished and of all cases.

    Raises:
        ConfigError: An override is invalid, or no patch fits into the memory.
        DataError: The data set or some of its cases cannot be used; all errors are reported together.
        OutputError: The plan cannot be written, or would replace a file that is no plan.
    """
    from volseg.planning.plan import check_replaceable

    _check_type("memory", memory, str, type(None))
    settings = _plan_config(config, overrides, memory)
    if out is None:
        examination = _examine(dataset, settings, grid_tolerance_mm, accept_header_of, workers, progress)
        return PlanningResult(plan=examination.usable()[1], examination=examination, config=settings)

    from volseg.report.overview import check_picture_replaceable, write_overview

    picture = Path(out).with_suffix(".png")
    check_replaceable(out)
    check_picture_replaceable(picture)
    examination = _examine(dataset, settings, grid_tolerance_mm, accept_header_of, workers, progress)
    measured, result = examination.usable()
    result.save(out)
    write_overview(picture, measured)
    return PlanningResult(plan=result, examination=examination, config=settings, files=(Path(out), picture))


def check(
    dataset: PathLike,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    grid_tolerance_mm: float = 0.01,
    accept_header_of: str | None = None,
    workers: int = 2,
    progress: StageProgress | None = None,
) -> tuple[Finding, ...]:
    """Find everything that is wrong, doubtful or worth knowing in a data set; arguments as those of :func:`plan`.

    Returns:
        The findings, errors first. Training is refused if some ``finding.severity`` is ``"error"``.

    Raises:
        ConfigError: An override is invalid.
        DataError: There is no such folder or CSV.
    """
    from volseg.errors import DataError
    from volseg.io.findings import Finding
    from volseg.io.paths import exists

    settings = _plan_config(None, overrides, None)
    try:
        return _examine(dataset, settings, grid_tolerance_mm, accept_header_of, workers, progress).findings
    except DataError as error:
        if not exists(Path(dataset)):
            raise
        return (Finding.of_error(error, Path(dataset), "layout"),)


def _plan_config(
    config: PathLike | Config | None, overrides: Sequence[str] | Mapping[str, Any], memory: str | None
) -> Config:
    """Return the configuration that a plan is made for.

    Raises:
        ConfigError: An override is invalid, or a ready plan is given.
    """
    from volseg.config.load import load_config
    from volseg.errors import ConfigError
    from volseg.planning.settings import PlanSettings

    if isinstance(overrides, Mapping):
        fields, settings = dict(overrides), load_config(config)
    else:
        _check_overrides(overrides)
        fields, settings = {}, load_config(config, overrides)
    stated = {"memory": memory, "batch_size": settings.train.batch_size}
    section = settings.plan | fields | {key: value for key, value in stated.items() if value is not None}
    if PlanSettings.read(section).file is not None:  # an invalid override shows before the cases are read
        raise ConfigError("a plan is made of the data set, not of plan.file", hint="plan.file is for volseg train")
    return replace(settings, plan=section)


def _examine(
    dataset: PathLike,
    settings: Config,
    grid_tolerance_mm: float,
    accept_header_of: str | None,
    workers: int,
    progress: StageProgress | None,
) -> Examination:
    """Read a data set and check it; see :func:`plan` and :func:`check`."""
    from volseg.config.schema import DataConfig
    from volseg.io.cases import GridRule
    from volseg.io.datasets import read_dataset
    from volseg.parallel import stage_progress
    from volseg.planning.examine import examine
    from volseg.planning.fingerprint import survey
    from volseg.planning.settings import PlanSettings

    _check_type("dataset", dataset, str, Path)
    DataConfig(grid_tolerance_mm=grid_tolerance_mm, accept_header_of=accept_header_of)  # checks both
    section, budget = PlanSettings.read(settings.plan), None
    if section.memory is not None:
        from volseg.training.memory import memory_budget  # imports torch

        budget = memory_budget(settings, section)
    grids = GridRule(grid_tolerance_mm, label_takes_image_grid=accept_header_of == "image")
    cases = read_dataset(dataset, strict=False, grids=grids)
    measured = survey(cases, stage_progress(progress, "fingerprint"), workers=workers)
    return examine(measured, section.overrides, budget, section.model)


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
            given is taken from the run.
        progress: Called with a stage (``fingerprint``, ``preprocess``, ``tokens``, ``train``, ``predict``,
            ``evaluate``) and the number of finished and of all cases or steps.

    Raises:
        ConfigError: A setting is invalid, does not fit the data, or is not that of the resumed run.
        DataError: The data set or one of its cases cannot be used, or changed since the resumed run began.
        ModelFileError: The weight file or the checkpoint cannot be used.
        OutputError: The run folder exists already, or cannot be written.
        RankLostError: Another process of ``torchrun`` has ended, which shows the error.
    """
    from volseg.config.load import given_values, load_config
    from volseg.config.schema import Config

    _check_type("config", config, str, Path, Mapping, Config, type(None))
    _check_type("resume", resume, bool, str, Path)
    _check_overrides(overrides)
    if resume:
        given_values(config, overrides)  # before anything heavy is imported: a typo shows at once
        from volseg.training.resume import config_to_resume

        settings = config_to_resume(config, overrides, None if resume is True else Path(resume))
    else:
        settings = load_config(config, overrides)

    from volseg.training.experiment import prepare_together
    from volseg.training.ranks import joined_ranks

    with (
        joined_ranks(os.environ) as ranks,
        prepare_together(settings, progress, ranks, resume=bool(resume)) as experiment,
    ):
        from volseg.device import deterministic_algorithms
        from volseg.training.loop import train as train_model  # takes seconds: what is invalid shows before

        if ranks.is_first and experiment.measured is not None:
            from volseg.report.overview import write_overview

            write_overview(experiment.folder / "plan.png", experiment.measured)
        with deterministic_algorithms(settings.deterministic):
            model_file = train_model(experiment, progress, ranks)
        scores, failed = _score_held_out(experiment, model_file, progress, ranks)
    return TrainingResult(model_file=model_file, folder=experiment.folder, scores=scores, failed=failed)


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

    folder, cases, device = experiment.folder / "validation", experiment.val_cases, experiment.config.device
    if not cases:
        return None, ()
    device, masks, shard = ranks.device(device), folder / "masks", ranks.shard
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
        folder / "scores",
        labels=experiment.plan.label_map,
        images={case.id: case.images[0] for case in cases},
        grids=cases[0].grids,
        progress=progress,
    )
    return scores, failed


def crossval(
    config: PathLike | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    *,
    folds: Sequence[int] | None = None,
    collect: bool = False,
    progress: StageProgress | None = None,
) -> CrossvalResult:
    """Train the folds one after another, score all out-of-fold masks together, and choose the postprocessing.

    The folder ``output`` holds a run folder ``fold_0`` ... for each fold. Called again, finished folds are kept and
    interrupted ones resume. Afterwards the folder is an ensemble that :func:`predict` takes.

    Args:
        config: YAML file, nested mapping or configuration.
        overrides: ``key=value`` strings that override it.
        folds: Numbers of the folds; ``None`` takes all.
        collect: Train nothing: all folds are finished.
        progress: Called as by :func:`train`, with the fold before the stage: ``fold 0: train``; then with the stages
            ``postprocessing`` and ``evaluate``.

    Raises:
        ConfigError: As :func:`train`; there is no such fold, or with ``collect`` one is not finished.
        DataError: As :func:`train`; or the splits changed since the first fold began.
        ModelFileError: As :func:`train`.
        OutputError: The folder holds something else, or another process works there.
        VolsegError: Some folds could not be trained; the others are.
    """
    from volseg.config.load import load_config
    from volseg.config.schema import Config

    _check_type("config", config, str, Path, Mapping, Config)
    _check_overrides(overrides)
    settings = load_config(config, overrides)

    from volseg.crossvalidation.out_of_fold import VALIDATION, link_masks, require_finished, write_postprocessed
    from volseg.crossvalidation.results import store_choice, write_fold_scores
    from volseg.crossvalidation.setup import prepare_folds
    from volseg.evaluation.choose_postprocessing import choose_postprocessing
    from volseg.parallel import stage_progress

    with prepare_folds(settings, folds, progress, collect=collect) as crossval:
        if not collect:
            _train_folds(crossval.folds, progress)
        require_finished(crossval.folds)
        predicted, failed = link_masks(crossval)
        label_map, workers = crossval.plan.label_map, settings.data.workers
        choice_progress = stage_progress(progress, "postprocessing")
        choice = choose_postprocessing(predicted, label_map, workers=workers, progress=choice_progress)
        methods = {"out of fold": predicted[0].mask.parent}
        postprocessed = write_postprocessed(crossval, predicted, choice.postprocessing)
        if postprocessed is not None:
            methods["postprocessed"] = postprocessed
        cases = [one.case for one in predicted]
        scores = evaluate(
            methods,
            {case.id: case.label for case in cases if case.label is not None},
            crossval.folder / VALIDATION,
            labels=label_map,
            images={case.id: case.images[0] for case in cases},
            grids=cases[0].grids,
            workers=workers,
            progress=progress,
        )
        table = write_fold_scores(scores.evaluation, crossval.folds, crossval.folder / VALIDATION)
        store_choice(crossval, choice)
        return CrossvalResult(
            folder=crossval.folder,
            folds=tuple(fold.number for fold in crossval.folds),
            scores=scores,
            fold_table=table,
            choice=choice,
            failed=failed,
        )


def _train_folds(folds: Sequence[Fold], progress: StageProgress | None) -> None:
    """Train the folds that are not finished.

    A fold whose training fails for a reason of its own does not stop the others; what concerns all of them does.

    Raises:
        VolsegError: Some folds could not be trained; each is named.
    """
    import logging

    from volseg.errors import VolsegError

    logger, failures = logging.getLogger(__name__), list[str]()
    for fold in folds:
        lacks = fold.lacks()
        if lacks is None:
            logger.info("fold %d is finished: %s", fold.number, fold.folder)
            continue
        logger.info("fold %d: %s; training in %s", fold.number, lacks, fold.folder)
        try:
            train(fold.config, resume=fold.has_run_files, progress=_progress_of_fold(progress, fold.number))
        except VolsegError as error:
            if type(error) is not VolsegError:  # settings, data, model files and disks are those of all folds
                raise
            logger.error("fold %d: %s", fold.number, error)
            failures.append(f"fold {fold.number}: {error}")
    if failures:
        raise VolsegError(
            f"{len(failures)} of {len(folds)} folds could not be trained",
            found="\n    ".join(["", *failures]),
            hint="the others are finished; the same command tries again",
        )


def _progress_of_fold(progress: StageProgress | None, number: int) -> StageProgress | None:
    if progress is None:
        return None
    return lambda stage, done, total: progress(f"fold {number}: {stage}", done, total)


def predict(
    model: PathLike | Sequence[PathLike] | Predictor,
    scans: PathLike | Sequence[Any],
    output: PathLike,
    *,
    device: str = "auto",
    tta: bool = False,
    skip_air: bool = True,
    max_memory: int | str | None = None,
    max_device_memory: int | str | None = None,
    precision: str = "auto",
    postprocess: Sequence[str] | None = None,
    mask_format: str | None = None,
    split_classes: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    strict: bool = False,
    resample_channels: bool = False,
    progress: StageProgress | None = None,
) -> Summary:
    """Write a mask for each scan, on the scan's own grid, and ``summary.json``.

    A scan that cannot be read or predicted fails alone; the others are finished. Masks of an earlier run with the same
    model, scan and options are skipped.

    Args:
        model: Model file, run folder or folder of a cross-validation, several for an ensemble, or a loaded model.
        scans: A scan, a folder of scans, a list file (``.txt``), or cases (:class:`volseg.io.cases.Case`).
        output: Folder of the masks; or, for one scan, a file such as ``x.nii.gz``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        tta: Average over mirrored copies along the plan's mirror axes.
        skip_air: Skip windows that hold only air, where the plan allows it.
        max_memory: Limit of the host's memory beside model, scan and mask, in bytes or as ``"4GB"``; default 4 GB, or
            more if needed.
        max_device_memory: The same for a GPU; default what is free there, less a margin.
        precision: ``32``, ``bf16``, or ``auto``: bf16 on GPUs that compute in it, float32 on CPUs.
        postprocess: Postprocessing instead of the model's, as ``["largest_component=all", "min_volume_ml=2"]``; ``[]``
            for none.
        mask_format: Format of the masks, a key of :data:`volseg.config.mask_formats.MASK_FORMATS`; ``None`` takes that
            of each scan (``.nii.gz`` for NIfTI, ``.seg.nrrd`` for NRRD, ``.mha`` for MetaImage, ``.mgz`` for MGH).
        split_classes: Write ``CASE/CLASS.nii.gz`` (0 and 1) instead of ``CASE.nii.gz``.
        probabilities: Also write the probability of each class.
        uncertainty: Also write a map of the entropy.
        shard: ``(i, n)`` takes every n-th scan from the i-th on.
        overwrite: Replace masks that volseg wrote with another model, scan or setting.
        strict: A scan whose values, voxel size or field of view are far from all training scans fails; otherwise this
            is a warning, on the log and in ``summary.json``.
        resample_channels: Resample channels on other grids to that of the first; otherwise such a scan fails.
        progress: Called with the stage ``predict`` and the number of finished and of all scans.

    Returns:
        What became of each scan; ``count("failed")`` is the number of failures.

    Raises:
        ConfigError: There is no such format or postprocessing, or the output is one file for several scans.
        DataError: There is no scan, or two have the same name.
        ModelFileError: A model file cannot be used.
        OutputError: The output folder cannot be written.
    """
    from volseg.config.sizes import parse_size
    from volseg.inference.cohort.run import predict_folder
    from volseg.inference.options import PredictOptions
    from volseg.inference.predictor import Predictor
    from volseg.parallel import stage_progress

    _check_type("model", model, str, Path, Sequence, Predictor)
    _check_type("scans", scans, str, Path, Sequence)
    _check_type("output", output, str, Path)
    for name, size in (("max_memory", max_memory), ("max_device_memory", max_device_memory)):
        _check_type(name, size, str, int, type(None))
    _check_type("mask_format", mask_format, str, type(None))
    _check_type("postprocess", postprocess, list, tuple, type(None))
    host, gpu = (None if size is None else parse_size(str(size)) for size in (max_memory, max_device_memory))
    predictor = model if isinstance(model, Predictor) else Predictor.from_file(model, device, precision)
    return predict_folder(
        predictor,
        scans,
        output,
        options=PredictOptions(
            tta=tta,
            skip_air=skip_air,
            max_memory_bytes=host,
            max_device_memory_bytes=gpu,
            resample_channels=resample_channels,
            postprocessing=_postprocessing(postprocess, predictor),
        ),
        mask_format=mask_format,
        split_classes=split_classes,
        probabilities=probabilities,
        uncertainty=uncertainty,
        shard=shard,
        overwrite=overwrite,
        strict=strict,
        progress=stage_progress(progress, "predict"),
    )


def _postprocessing(settings: Sequence[str] | None, predictor: Predictor) -> Postprocessing | None:
    """Return the postprocessing that is asked for in place of the model's; ``None`` if none is."""
    from volseg.config.load import load_config
    from volseg.postprocessing.rules import Postprocessing

    if settings is None:
        return None
    config = load_config(None, [f"postprocess.{setting}" for setting in settings])
    return Postprocessing.from_config(config.postprocess, predictor.plan.label_map)


def evaluate(
    pred: PathLike | Mapping[str, PathLike],
    ref: PathLike | Mapping[str, Path] | None = None,
    out: PathLike | None = None,
    *,
    dataset: PathLike | None = None,
    labels: Mapping[str, object] | LabelMap | None = None,
    images: PathLike | Mapping[str, Path] | None = None,
    cases: PathLike | Sequence[str] | None = None,
    hd_mode: HdMode = "max",
    nsd_tolerance_mm: float = 1.0,
    class_tolerance_mm: Mapping[str, float] | None = None,
    grids: GridRule | None = None,
    workers: int = 0,
    report: bool = True,
    progress: StageProgress | None = None,
) -> EvaluationResult:
    """Score masks against references, with intervals and paired tests between methods.

    Args:
        pred: Folder of predictions, or method name -> folder.
        ref: Folder of references, or case -> file; ``None`` takes the labels that ``dataset`` lists.
        out: Folder of ``cases.csv``, ``scores.json``, ``scores.md`` and ``report.html`` with its pictures; ``None``
            writes nothing.
        dataset: A ``dataset.json`` with the classes; the pairs of image and label that it lists are the truth.
        labels: Class name -> value or values, instead of those of ``dataset``. Without both: the values found in the
            references.
        images: Folder of the scans, or case -> file, for the pictures; default: as ``dataset`` lists them, or beside
            the references.
        cases: Score these cases only: names, or a file with one name per line or a run's ``splits.json``.
        hd_mode: Definition of HD95: ``max``, ``pooled`` or ``surfel``.
        nsd_tolerance_mm: Tolerance of NSD.
        class_tolerance_mm: Tolerances of single classes, by name.
        grids: When the grids of prediction and reference count as the same; default: within 0.01 mm.
        workers: Processes that score cases; 0 works in this one.
        report: Write ``report.html`` and its pictures.
        progress: Called with the stage ``evaluate`` and the number of finished and of all cases.

    Raises:
        ConfigError: ``cases`` cannot be read.
        DataError: A folder is missing or holds no masks, or label maps disagree.
        OutputError: A file cannot be written.
    """
    from volseg.evaluation.folder import evaluate_folder
    from volseg.evaluation.sources import read_case_names
    from volseg.evaluation.summary import summarize
    from volseg.io.atomic import remove_stale
    from volseg.io.description import read_description, required_labels
    from volseg.parallel import stage_progress
    from volseg.report.tables import check_inputs, markdown_text, write_tables

    _check_type("pred", pred, str, Path, Mapping)
    _check_type("ref", ref, str, Path, Mapping, type(None))
    _check_type("out", out, str, Path, type(None))
    _check_type("dataset", dataset, str, Path, type(None))
    if out is not None:
        check_inputs([path for path in (dataset, cases) if isinstance(path, str | Path)], out)
    description = read_description(dataset) if dataset is not None else None
    if labels is None and description is not None:
        labels = required_labels(description)
    evaluation = evaluate_folder(
        pred,
        ref,
        labels,
        hd_mode=hd_mode,
        nsd_tolerance_mm=nsd_tolerance_mm,
        class_tolerance_mm=class_tolerance_mm,
        cases=read_case_names(cases) if isinstance(cases, str | Path) else cases,
        pairs=(description.cases or ()) if description is not None else (),
        grids=grids,
        workers=workers,
        progress=stage_progress(progress, "evaluate"),
    )
    summary = summarize(evaluation)
    files: list[Path] = []
    if out is not None:
        files += write_tables(evaluation, summary, out)
        if report:
            from volseg.report.examples import find_images
            from volseg.report.html import write_report

            scans = find_images(images, description, None if isinstance(ref, Mapping) else ref)
            files += write_report(out, evaluation, summary, scans)
        remove_stale(Path(out))
    return EvaluationResult(evaluation=evaluation, summary=summary, table=markdown_text(summary), files=tuple(files))


def convert(
    dataset: PathLike,
    out: PathLike,
    *,
    resample_channels: bool = False,
    workers: int = 2,
    progress: StageProgress | None = None,
) -> Dataset:
    """Write a data set in any layout as nnU-Net v2 raw: ``imagesTr``, ``labelsTr``, ``imagesTs``, ``dataset.json``.

    Scans become one ``.nii.gz`` file per channel, label values consecutive, and the ignore label the last one. Files
    that are already so are copied. The folder appears when it is complete.

    Args:
        dataset: Data set in any layout that :func:`plan` reads; classes may be regions.
        out: Folder to write; it must not exist or be empty.
        resample_channels: Resample channels on other grids to that of the first, linearly.
        workers: Processes that convert cases.
        progress: Called with the stage ``convert`` and the number of finished and of all cases.

    Returns:
        The written data set.

    Raises:
        DataError: The data set or some of its cases cannot be used; all invalid cases are reported together.
        OutputError: ``out`` is not empty, or cannot be written.
    """
    from volseg.conversion import write_nnunet
    from volseg.io.datasets import read_dataset
    from volseg.parallel import stage_progress

    _check_type("dataset", dataset, str, Path)
    _check_type("out", out, str, Path)
    write_nnunet(
        read_dataset(dataset, trainable=False),
        Path(out),
        resample_channels=resample_channels,
        workers=workers,
        progress=stage_progress(progress, "convert"),
    )
    return read_dataset(out, trainable=False)


def download(name: str, folder: PathLike = ".") -> Path:
    """Download a public data set, check its checksum and extract it.

    Args:
        name: ``msd:`` and a task of the Medical Segmentation Decathlon, such as ``msd:Task04_Hippocampus``.
        folder: Where to put the folder of the data set.

    Returns:
        The folder of the data set; if it is there already, nothing is downloaded.

    Raises:
        ConfigError: There is no data set of this name; the message lists all.
        DataError: There is no network, or the archive is damaged; the message says what to download by hand.
        OutputError: The folder cannot be written.
    """
    from volseg.download import download_dataset

    _check_type("name", name, str)
    _check_type("folder", folder, str, Path)
    return download_dataset(name, Path(folder))


def load(model: PathLike | Sequence[PathLike], device: str = "auto", precision: str = "auto") -> Predictor:
    """Read a trained model, or several whose probabilities are averaged.

    Args:
        model: A ``model.safetensors`` written by training, its run folder, or the folder of a cross-validation; or
            several.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``32``, ``bf16``, or ``auto``: bf16 on GPUs that compute in it, float32 on CPUs.

    Returns:
        A predictor; ``predict(path)`` or ``predict(array, affine)`` gives a mask on the scan's own grid, which
        ``save(path)`` writes.

    Raises:
        ModelFileError: A file is missing, damaged or not a volseg model.
        ConfigError: There is no such device, or the models have different classes or channels.
    """
    from volseg.inference.predictor import Predictor

    _check_type("model", model, str, Path, Sequence)
    return Predictor.from_file(model, device, precision)
