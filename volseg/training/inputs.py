"""Plan, split and content of the cases of a run: recorded at its start, and compared when it is resumed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from volseg.config.schema import Config
from volseg.data.split_files import read_run_split
from volseg.data.split_rules import choose_split
from volseg.errors import ConfigError, DataError, counted
from volseg.io.cases import Case, listed
from volseg.io.content import file_sha256
from volseg.io.datasets import Dataset
from volseg.io.json_files import read_json, write_json
from volseg.io.labels import LabelMap, values_text
from volseg.parallel import for_each_case
from volseg.planning.plan import Plan
from volseg.preprocessing.cache import CachedCase, input_identity

logger = logging.getLogger(__name__)

PLAN_FILE, SPLIT_FILE, INPUTS_FILE = "plan.json", "splits.json", "inputs.json"
RESTORE = "restore the file from a copy, or start a new run with another output="
NEW_RUN = "restore the data, or start a new run with another output="


def write_inputs(folder: Path, dataset: Dataset, workers: int, cached: Sequence[CachedCase] = ()) -> None:
    """Record the hash of the plan file and of the content of every labelled case.

    Args:
        folder: The run folder.
        dataset: The data set.
        workers: Processes that read.
        cached: Preprocessed cases, whose files were hashed when they were looked up in the cache.

    Raises:
        DataError: A file cannot be read.
        OutputError: The record cannot be written.
    """
    known = {case.id: case.identity for case in cached}
    others = [case for case in dataset.cases if case.id not in known]
    cases = known | _content(others, workers)
    record = {"plan_sha256": file_sha256(folder / PLAN_FILE), "cases": {c.id: cases[c.id] for c in dataset.cases}}
    write_json(folder / INPUTS_FILE, record)


def read_inputs(folder: Path, dataset: Dataset, config: Config) -> tuple[Dataset, Plan, dict[str, Any]]:
    """Return the data set, the plan and the split of a run, all unchanged since its start.

    The data set may lie elsewhere. Labelled cases that it did not have then are left out, with a warning.

    Args:
        folder: The run folder.
        dataset: The data set as it is now.
        config: The configuration.

    Raises:
        ConfigError: A file of the run folder is missing, damaged or changed.
        DataError: The data set or its split changed; the cases are named.
    """
    for name in (PLAN_FILE, SPLIT_FILE, INPUTS_FILE):
        if not (folder / name).exists():
            raise ConfigError(f"{name} of the run is missing", file=folder / name, hint=RESTORE)
    plan, split = Plan.load(folder / PLAN_FILE), read_run_split(folder / SPLIT_FILE)
    record = _read_record(folder / INPUTS_FILE)
    if file_sha256(folder / PLAN_FILE) != record["plan_sha256"]:
        raise ConfigError("the plan was changed since the run began", file=folder / PLAN_FILE, hint=RESTORE)
    dataset = _without_new_cases(dataset, record["cases"])
    _check_content(dataset, record["cases"], config.data.workers)
    if (dataset.labels, dataset.label_map) != (plan.labels, plan.label_map):
        raise DataError(
            "the labels of the data set are not those of the run",
            file=dataset.root,
            found=_label_text(dataset.label_map),
            expected=_label_text(plan.label_map),
            hint=NEW_RUN,
        )
    _check_split(dataset, config, split)
    return dataset, plan, split


def _content(cases: Sequence[Case], workers: int) -> dict[str, Any]:
    """Return the identity of every case."""
    if not cases:
        return {}
    logger.info("hashing the files of %s", counted(len(cases), "case"))
    identities = for_each_case(input_identity, cases, workers=workers)
    return {case.id: identity for case, identity in zip(cases, identities, strict=True)}


def _read_record(file: Path) -> dict[str, Any]:
    record = read_json(file, "inputs")
    cases = record.get("cases") if isinstance(record, dict) else None
    if not isinstance(cases, dict) or not isinstance(record.get("plan_sha256"), str):
        raise ConfigError("this is not the record of a run's inputs", file=file, found=str(record)[:80], hint=RESTORE)
    return dict(record)


def _without_new_cases(dataset: Dataset, recorded: Mapping[str, Any]) -> Dataset:
    new = [case.id for case in dataset.cases if case.id not in recorded]
    if new:
        text = "left out, because new since the run began: %s: %s"
        logger.warning(text, counted(len(new), "labelled case"), listed(new))
    return replace(dataset, cases=tuple(case for case in dataset.cases if case.id in recorded))


def _check_content(dataset: Dataset, recorded: Mapping[str, Any], workers: int) -> None:
    """Check that every recorded case is there and has the same content."""
    now = _content(dataset.cases, workers)
    missing = [name for name in recorded if name not in now]
    changed = [name for name, identity in now.items() if identity != recorded[name]]
    lines = [
        f"{len(names)} {what}: {listed(names)}" for what, names in (("missing", missing), ("changed", changed)) if names
    ]
    if lines:
        raise DataError(
            "cases of the run are not in the data set as they were when it began",
            file=dataset.root,
            found="; ".join(lines),
            hint=NEW_RUN,
        )


def _check_split(dataset: Dataset, config: Config, split: Mapping[str, Any]) -> None:
    """Check that the rule of the split still gives it: its file, or the data set's folds and patients."""
    now = choose_split(dataset, config.data, config.seed)
    moved = sorted({name for part in ("train", "val") for name in {*now[part]} ^ {*split[part]}})
    if moved:
        raise DataError(
            "the split is not the one with which the run began",
            file=dataset.root,
            found=f"{counted(len(moved), 'case')} in another part, by {now['rule']}: {listed(moved)}",
            expected=f"fold {split['fold']} by {split['rule']}",
            hint="restore the folds or the split file, or start a new run with another output=",
        )


def _label_text(label_map: LabelMap) -> str:
    classes = {name: str(value) for name, value in label_map.to_plain().items()}
    if label_map.regions:  # a region paints one of its values
        classes |= {name: f"{values_text(values)} as {classes[name]}" for name, values in label_map.classes.items()}
    ignored = f", ignored: {label_map.ignore_label}" if label_map.ignore_label is not None else ""
    return ", ".join(f"{name}: {text}" for name, text in classes.items()) + ignored
