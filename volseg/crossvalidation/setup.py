"""The folder of a cross-validation: one plan for all folds, their splits, and what may not change once it has begun."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.config.load import load_config
from volseg.config.schema import Config, DataConfig
from volseg.crossvalidation.folds import Fold, has_begun, make_fold
from volseg.data.split_rules import choose_all_splits
from volseg.errors import ConfigError, DataError, OutputError
from volseg.io.atomic import remove_stale
from volseg.io.cases import listed
from volseg.io.datasets import Dataset
from volseg.io.findings import errors_of
from volseg.io.json_files import read_json, write_json
from volseg.io.locks import folder_lock
from volseg.io.model_folder import CROSSVAL_FILE
from volseg.io.paths import is_file
from volseg.parallel import StageProgress
from volseg.planning.plan import Plan
from volseg.postprocessing.rules import Postprocessing
from volseg.report.overview import write_overview
from volseg.training.experiment import check_settings, dataset_of, plan_of
from volseg.training.inputs import INPUTS_FILE, PLAN_FILE
from volseg.training.resume import CONFIG_FILE, changes, refuse_changes, save_config
from volseg.version import __version__

logger = logging.getLogger(__name__)

TASK = "volseg crossval"
NEW = "restore the data, or start a new cross-validation with another output="
Splits = Mapping[int, Mapping[str, Any]]
"""Fold -> its split, as :func:`volseg.data.split_rules.choose_split` gives it."""


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """A cross-validation.

    Attributes:
        config: Its configuration.
        dataset: The data set.
        plan: The plan of all folds.
        folds: The folds of the ensemble.
    """

    config: Config
    dataset: Dataset
    plan: Plan
    folds: tuple[Fold, ...]

    @property
    def folder(self) -> Path:
        """The folder of all folds."""
        return Path(self.config.output)

    @property
    def postprocessing(self) -> Postprocessing:
        """Postprocessing of the folds' own masks, as configured."""
        return Postprocessing.from_config(self.config.postprocess, self.plan.label_map)


@contextmanager
def prepare_folds(
    config: Config, numbers: Sequence[int] | None, progress: StageProgress | None = None, *, collect: bool = False
) -> Iterator[CrossValidation]:
    """Read the data set, make the plan and the splits, and hold the folder until the block ends.

    A cross-validation whose first fold has a checkpoint goes on with its plan and splits.

    Args:
        config: The configuration.
        numbers: The folds; ``None`` takes all.
        progress: Called with the stage ``fingerprint``.
        collect: Only finished folds are going to be used: no setting of training is checked.

    Raises:
        ConfigError: A setting is invalid, or differs from what a fold began with.
        DataError: The data set cannot be used, its splits changed, or two folds hold out the same case.
        ModelFileError: The weight file does not exist, or cannot be downloaded.
        OutputError: The folder holds other files, or another process works there.
    """
    folder = Path(config.output)
    if config.data.fold != DataConfig.fold:
        hint = "leave data.fold out; --folds selects folds"
        raise ConfigError("a cross-validation sets the folds itself", found=f"data.fold={config.data.fold}", hint=hint)
    begun = any(has_begun(run) for run in folder.glob("fold_*"))
    if not collect:
        check_settings(config, resumed=begun)
    dataset = dataset_of(config, resumed=begun)
    Postprocessing.from_config(config.postprocess, dataset.label_map)  # fail early on misspelt class names
    if errors_of(dataset.findings):
        plan_of(config, dataset, progress)  # raises them, with those of the cases
    splits = choose_all_splits(dataset, config.data, config.seed)
    selected = _selected(splits, numbers)
    with _folder(folder) as before:
        if begun:
            _check_unchanged(config, splits, before)
        elif collect:
            raise ConfigError("no fold is trained", file=folder, hint="train the folds first: volseg crossval")
        else:
            _log_replaced(config, splits, before)
        # before the plan, so that a folder without this record holds nothing of volseg crossval
        write_json(folder / CROSSVAL_FILE, {"volseg": __version__, "members": selected, "folds": _plain(splits)})
        plan = Plan.load(folder / PLAN_FILE) if begun else _make_plan(config, dataset, progress)
        save_config(config, folder)
        folds = tuple(make_fold(config, plan, number, splits[number]["val"]) for number in selected)
        yield CrossValidation(config=config, dataset=dataset, plan=plan, folds=folds)


def write_fold_configs(folds: Sequence[Fold]) -> None:
    """Write the configurations of folds that have not begun, so that ``volseg train --resume`` starts them.

    Raises:
        OutputError: A fold is in training, or cannot be written.
    """
    for fold in folds:
        if not has_begun(fold.folder):
            fold.folder.mkdir(exist_ok=True)
            with folder_lock(fold.folder, TASK):
                save_config(fold.config, fold.folder)


def check_same_inputs(folds: Sequence[Fold]) -> None:
    """Check that all folds were trained with the same plan and the same content of all cases.

    Raises:
        DataError: They were not.
    """
    records = {fold.number: read_json(fold.folder / INPUTS_FILE, "inputs", DataError) for fold in folds}
    first = folds[0].number
    for number, record in records.items():
        if record != records[first]:
            parts = [key for key in ("plan_sha256", "cases") if record.get(key) != records[first].get(key)]
            raise DataError(
                "the folds were not trained with the same plan and cases",
                file=folds[0].folder.parent,
                found=f"{INPUTS_FILE} of fold {number} differs from that of fold {first}: {', '.join(parts)}",
                hint="remove the run folder of the fold that differs, and train it again",
            )


def _selected(splits: Splits, numbers: Sequence[int] | None) -> list[int]:
    """Return the numbers of the folds, which hold out every case at most once."""
    selected = list(splits) if numbers is None else sorted({*numbers})
    unknown = [number for number in selected if number not in splits]
    if unknown or not selected:
        raise ConfigError(
            "there are no such folds",
            found=", ".join(map(str, unknown)) or "none",
            expected=", ".join(map(str, splits)),
            hint="folds that hold out the same cases as others are left out",
        )
    owner: dict[str, int] = {}
    for number in selected:
        twice = [name for name in splits[number]["val"] if owner.setdefault(name, number) != number]
        if twice:
            found = f"folds {owner[twice[0]]} and {number}: {listed(twice)}"
            raise DataError("two folds hold out the same cases", found=found, hint="select one of them with --folds")
    return selected


@contextmanager
def _folder(folder: Path) -> Iterator[dict[str, Any]]:
    """Make the folder and hold it; yield the splits that its record states.

    Raises:
        ConfigError: The record cannot be read.
        OutputError: It holds files of something else, or another process works there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("the output folder cannot be written", file=folder, found=error) from error
    with folder_lock(folder, TASK):
        record = folder / CROSSVAL_FILE
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        if names and not record.exists():
            raise OutputError(
                "the output folder holds other files",
                file=folder,
                found=listed(names),
                expected=f"an empty folder, or one with {CROSSVAL_FILE}",
                hint="choose another output=",
            )
        remove_stale(folder)
        yield _read_splits(record) if record.exists() else {}


def _read_splits(file: Path) -> dict[str, Any]:
    record = read_json(file, "cross-validation")
    splits = record.get("folds") if isinstance(record, dict) else None
    if not isinstance(splits, dict):
        found, hint = str(record)[:80], "restore it from a copy, or choose another output="
        raise ConfigError("this is not the record of a cross-validation", file=file, found=found, hint=hint)
    return splits


def _check_unchanged(config: Config, splits: Splits, before: Mapping[str, Any]) -> None:
    """Check that settings and splits are those with which the first fold began.

    Raises:
        ConfigError: A setting differs that may not change, or the stored configuration is missing or damaged.
        DataError: The splits differ.
    """
    folder, now = Path(config.output), _plain(splits)
    refuse_changes(changes(load_config(folder / CONFIG_FILE), config), folder / CONFIG_FILE)
    differing = [number for number in {**before, **now} if before.get(number) != now.get(number)]
    if differing:
        raise DataError(
            "the splits are not those with which the cross-validation began",
            file=folder / CROSSVAL_FILE,
            found=f"other cases in folds {', '.join(differing)}",
            hint=NEW,
        )


def _log_replaced(config: Config, splits: Splits, before: Mapping[str, Any]) -> None:
    """Warn of settings and splits that differ from those of jobs that were printed, none of which has begun."""
    file = Path(config.output) / CONFIG_FILE
    if not before or not is_file(file):
        return
    differing = [str(change) for change in changes(load_config(file), config)]
    differing += ["the splits"] if before != _plain(splits) else []
    if differing:
        text = "%s: no fold has begun, so these are replaced, also for jobs that were printed: %s"
        logger.warning(text, config.output, "; ".join(differing))


def _make_plan(config: Config, dataset: Dataset, progress: StageProgress | None) -> Plan:
    """Make the plan of all folds, or read the ready one, and write it into the folder."""
    folder = Path(config.output)
    plan, measured = plan_of(config, dataset, progress)
    plan.save(folder / PLAN_FILE)
    if measured is not None:
        write_overview(folder / "plan.png", measured)
    return plan


def _plain(splits: Splits) -> dict[str, Any]:
    return {str(number): dict(split) for number, split in splits.items()}
