"""Training all folds, scoring their held-out cases, and choosing the postprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.api.arguments import PathLike, check_overrides, check_type
from volseg.api.evaluation import evaluate
from volseg.api.results import CrossvalResult
from volseg.api.training import train

if TYPE_CHECKING:
    from volseg.config.schema import Config
    from volseg.crossvalidation.folds import Fold
    from volseg.parallel import StageProgress


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

    check_type("config", config, str, Path, Mapping, Config)
    check_overrides(overrides)
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
