"""Checking and planning a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.api.arguments import PathLike, check_overrides, check_type
from volseg.api.results import PlanningResult

if TYPE_CHECKING:
    from volseg.config.schema import Config
    from volseg.io.findings import Finding
    from volseg.parallel import StageProgress
    from volseg.planning.examine import Examination
    from volseg.planning.plan import Plan


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
        memory: Limit of the memory of a training step, such as ``"8GB"``, the same as ``plan.memory``; the default is
            8 GB for training on a GPU, and none on a CPU.
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

    check_type("memory", memory, str, type(None))
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
        check_overrides(overrides)
        fields, settings = {}, load_config(config, overrides)
    other = settings.plan.get("memory")
    if memory and other and str(other) != memory:
        raise ConfigError("the memory is given twice", found=f"memory={memory}, plan.memory={other}", hint="omit one")
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

    check_type("dataset", dataset, str, Path)
    DataConfig(grid_tolerance_mm=grid_tolerance_mm, accept_header_of=accept_header_of)  # checks both
    section, budget = PlanSettings.read(settings.plan), None
    if section.memory is not None or settings.device != "cpu":
        from volseg.training.memory import memory_budget  # imports torch

        budget = memory_budget(settings, section)
    grids = GridRule(grid_tolerance_mm, label_takes_image_grid=accept_header_of == "image")
    cases = read_dataset(dataset, strict=False, grids=grids)
    measured = survey(cases, stage_progress(progress, "fingerprint"), workers=workers)
    return examine(measured, section.overrides, budget, section.model)
