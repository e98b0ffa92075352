"""The rule by which a data set is split: a file, its own folds, or five folds by patient or case."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.config.schema import DataConfig
from volseg.data.split_files import ALL, Fold, Folds, read_split_file, split_sha256
from volseg.data.splits import Split, choose_shots, make_splits, nnunet_splits
from volseg.errors import ConfigError, DataError, counted
from volseg.io.cases import Case, listed, refuse
from volseg.io.datasets import Dataset
from volseg.io.paths import is_file

logger = logging.getLogger(__name__)

SPLIT_SEED = 0
"""The folds do not depend on the run's seed, so that runs of several seeds are scored on the same cases."""
RANDOM, NNUNET = "random", "nnunet"
"""Values of ``data.splits`` that are no files."""
NNUNET_FILE = "splits_final.json"
SHOWN_PROBLEMS = 10


def choose_split(dataset: Dataset, config: DataConfig, seed: int) -> dict[str, Any]:
    """Return the training and held-out cases of a run, as written to ``splits.json``, and log by which rule.

    Args:
        dataset: The data set.
        config: Fold, split file, pattern of patients, and number of shots.
        seed: Seed of the choice of shots.

    Raises:
        ConfigError: The split file cannot be used, there is no such fold, or there are fewer training cases than shots.
        DataError: Names without a patient, splits that contradict the data set, or cases of one patient on both sides.
    """
    names = [case.id for case in dataset.cases]
    patients, source = _patients(dataset, config.patient_pattern)
    if config.fold == ALL and config.splits in (None, RANDOM, NNUNET):
        folds: Folds = {ALL: {"train": names, "val": []}}
        rule = "all labelled cases, none is held out"
    else:
        folds, rule = _folds(dataset, config, patients, source)
    if config.fold not in folds:
        numbers = ", ".join(map(str, folds))
        raise ConfigError(f"{rule}: there is no such fold", found=f"data.fold={config.fold}", expected=numbers)
    others = f"of {', '.join(map(str, folds))}" if len(folds) > 1 else "(the only one)"
    logger.info("split: %s; fold %s %s", rule, config.fold, others)
    _log_left_out(dataset, {config.fold: folds[config.fold]})
    return _record(folds, config.fold, rule, config.shots, seed)


def choose_all_splits(dataset: Dataset, config: DataConfig, seed: int) -> dict[int, dict[str, Any]]:
    """Return the splits of all folds that hold out cases, each as :func:`choose_split` gives it.

    Folds that repeat others, as with fewer than five patients, are left out. ``config.fold`` has no meaning here.

    Raises:
        ConfigError: The split file cannot be used, or there are fewer training cases than shots.
        DataError: As :func:`choose_split`.
    """
    patients, source = _patients(dataset, config.patient_pattern)
    folds, rule = _folds(dataset, config, patients, source)
    splits = {fold: _record(folds, fold, rule, config.shots, seed) for fold in folds if isinstance(fold, int)}
    first = {tuple(split["val"]): fold for fold, split in reversed(splits.items())}
    _log_left_out(dataset, {fold: folds[fold] for fold in sorted(first.values())})
    return {fold: splits[fold] for fold in sorted(first.values())}


def _record(folds: Folds, fold: Fold, rule: str, shots: int | None, seed: int) -> dict[str, Any]:
    """Return a split as written to ``splits.json``."""
    lists = {"train": choose_shots(folds[fold]["train"], shots, seed), "val": sorted(folds[fold]["val"])}
    return {"fold": fold, "rule": rule, "sha256": split_sha256(lists), **lists}


def _folds(dataset: Dataset, config: DataConfig, patients: Mapping[str, str] | None, source: str) -> tuple[Folds, str]:
    """Return the splits of all folds and the rule that makes them."""
    names, stated = [case.id for case in dataset.cases], any(case.fold is not None for case in dataset.cases)
    _log_unused(dataset, config, stated)
    if config.splits == RANDOM or (config.splits is None and not stated):
        splits = make_splits(names, SPLIT_SEED, patients=patients)
        return dict(enumerate(splits)), f"five folds by {f'patient ({source})' if patients else 'case'}"
    if config.splits == NNUNET:
        folds, rule, file = dict[Fold, Split](enumerate(nnunet_splits(names))), "the five folds of nnU-Net", None
    elif config.splits is None:
        folds, rule, file = _stated_folds(dataset.cases), "the folds that the data set states", dataset.root
    else:
        file = Path(config.splits)
        folds, rule = read_split_file(file), f"the split file {file.name}"
        if config.fold == ALL and ALL not in folds:
            raise ConfigError(
                "data.fold=all holds out no case, so a split file has no use",
                file=file,
                hint="set data.splits=null, or a fold of the file",
            )
    check_folds(folds, names, patients, file, rule)
    return folds, rule


def _stated_folds(cases: Sequence[Case]) -> Folds:
    """Return the splits by `Case.fold`; a case without one is always trained on."""
    return {
        number: {
            "train": [case.id for case in cases if case.fold != number],
            "val": [case.id for case in cases if case.fold == number],
        }
        for number in sorted({case.fold for case in cases if case.fold is not None})
    }


def check_folds(
    folds: Folds, names: Sequence[str], patients: Mapping[str, str] | None, file: Path | None, rule: str
) -> None:
    """Check splits that somebody wrote against the data set.

    Args:
        folds: The splits.
        names: All labelled cases.
        patients: Case -> patient, if it is known.
        file: Where the splits come from, for the message.
        rule: What they are, for the message.

    Raises:
        DataError: Cases that do not exist, that stand twice or on both sides, patients on both sides, or an empty side;
            all problems of all folds are listed.
    """
    problems = [
        f"fold {fold}: {problem}"
        for fold, split in folds.items()
        for problem in _problems(split, {*names}, patients or {}, holds_out=fold != ALL)
    ]
    if problems:
        more = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        raise DataError(
            f"{rule} cannot be used",
            file=file,
            found="\n    ".join([f"{len(problems)}:", *problems[:SHOWN_PROBLEMS], *more]),
            hint="correct them, or set data.splits=random for five random folds; data.patient_pattern says what "
            "belongs to one patient ('.+': every case is a patient)",
        )


def _problems(split: Split, names: set[str], patients: Mapping[str, str], *, holds_out: bool) -> Iterator[str]:
    """Yield what is wrong with one fold."""
    train, val = {*split["train"]}, {*split["val"]}
    both_sides = {patients.get(name, name) for name in train} & {patients.get(name, name) for name in val}
    twice = {name for part in split.values() for name, times in Counter(part).items() if times > 1}
    found = {
        ("case", "not in the data set"): (train | val) - names,
        ("case", "listed twice"): twice,
        ("case", "both trained on and held out"): train & val,
        ("patient", "with cases both trained on and held out"): set() if train & val else both_sides,
    }
    for (noun, problem), items in found.items():
        if items:
            yield f"{counted(len(items), noun)} {problem}: {listed(sorted(items))}"
    if not train:
        yield "no training cases"
    if not val and holds_out:
        yield "no held-out cases"


def _patients(dataset: Dataset, pattern: str | None) -> tuple[dict[str, str] | None, str]:
    """Return case -> patient, where it is known, and what states it."""
    names = [case.id for case in dataset.cases]
    if pattern is not None:
        matches = {name: re.search(pattern, name) for name in names}
        found = {name: match[1 if match.re.groups else 0] for name, match in matches.items() if match is not None}
        without = [name for name in names if not found.get(name)]
        hint = "correct the pattern: its first group, or the whole match, is the patient"
        refuse(f"cases that data.patient_pattern={pattern} does not match", dataset.root, without, hint=hint)
        return found, "data.patient_pattern"
    if all(case.patient is None for case in dataset.cases):
        return None, ""
    unknown = [case.id for case in dataset.cases if case.patient is None]
    if unknown:
        text = "%s without a patient, counted as a patient each: %s"
        logger.warning(text, counted(len(unknown), "case"), listed(unknown))
    return {case.id: case.patient or case.id for case in dataset.cases}, "as the data set states"


def _log_unused(dataset: Dataset, config: DataConfig, stated: bool) -> None:
    """Log what the data set states about splits and this run does not use."""
    if stated and config.splits is not None:
        logger.warning("the folds that the data set states are not used: data.splits=%s", config.splits)
    folder = dataset.root if dataset.root.is_dir() else dataset.root.parent
    file = folder / NNUNET_FILE
    given = config.splits is not None and Path(config.splits).resolve() == file.resolve()
    if is_file(file) and not given:
        logger.warning("%s is not used; data.splits=%s uses it", NNUNET_FILE, file)


def _log_left_out(dataset: Dataset, folds: Mapping[Fold, Split]) -> None:
    """Warn of cases that folds neither train on nor hold out, once for all folds that leave out the same."""
    leaving: dict[tuple[str, ...], list[str]] = {}
    for fold, split in folds.items():
        used = {*split["train"], *split["val"]}
        left_out = tuple(case.id for case in dataset.cases if case.id not in used)
        leaving.setdefault(left_out, []).append(str(fold))
    for cases, numbers in leaving.items():
        if cases:
            where = f"fold{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
            logger.warning("in no part of %s: %s: %s", where, counted(len(cases), "case"), listed(cases))
