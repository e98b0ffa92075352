"""Splits into training and validation cases, determined by names and a seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from volseg.errors import ConfigError, DataError

FOLDS = 5
NNUNET_SEED = 12345

Split = dict[str, list[str]]
"""``{"train": [...], "val": [...]}``, case names in alphabetical order."""


def make_splits(
    case_ids: Sequence[str], seed: int, folds: int = FOLDS, patients: Mapping[str, str] | None = None
) -> list[Split]:
    """Split cases into folds for cross-validation.

    Patients are ordered by a hash of seed and name and assigned in turn, so neither the order of listing nor the
    version of a random generator matters. With fewer patients than folds, folds repeat (fold k holds out patient k
    modulo n).

    Args:
        case_ids: Names, all different.
        seed: Other seeds give other folds.
        folds: Number of folds.
        patients: Case -> patient, whose cases stay together; without it every case is a patient of its own name.

    Returns:
        One split per fold; the validation cases of different folds are disjoint (with enough patients).

    Raises:
        DataError: Fewer than two cases or patients, or a name occurs twice.
    """
    _check_different(case_ids)
    patients = patients or {name: name for name in case_ids}
    order = _shuffled(sorted({patients[name] for name in case_ids}), f"{seed}:fold")
    if len(order) < 2:
        hint = "add cases, or set data.fold=all to train on all of them"
        raise DataError("a split needs at least two cases, of different patients", found=len(order), hint=hint)
    groups = min(folds, len(order))
    held_out = [set(order[fold % groups :: groups]) for fold in range(folds)]
    return [_split(case_ids, [name for name in case_ids if patients[name] in group]) for group in held_out]


def nnunet_splits(case_ids: Sequence[str]) -> list[Split]:
    """Split cases into the five folds of nnU-Net: ``KFold(5, shuffle=True, random_state=12345)`` over sorted names.

    Args:
        case_ids: Names, all different. Other names of the same scans give other folds.

    Raises:
        DataError: Fewer than five cases, or a name occurs twice.
    """
    _check_different(case_ids)
    if len(case_ids) < FOLDS:
        hint = "set data.splits=random"
        raise DataError("nnU-Net's split needs at least five cases", found=len(case_ids), hint=hint)
    names = sorted(case_ids)
    order = np.arange(len(names))
    np.random.RandomState(NNUNET_SEED).shuffle(order)  # as scikit-learn; NumPy keeps its numbers in all versions
    return [_split(names, [names[index] for index in part]) for part in np.array_split(order, FOLDS)]


def choose_shots(case_ids: Sequence[str], shots: int | None, seed: int) -> list[str]:
    """Choose a few training cases; fewer shots are always a subset of more.

    Args:
        case_ids: Names to choose from.
        shots: Number of cases; ``None`` chooses all.
        seed: Other seeds give other choices.

    Returns:
        The names in alphabetical order.

    Raises:
        ConfigError: More shots than cases.
    """
    if shots is None:
        return sorted(case_ids)
    if shots > len(case_ids):
        raise ConfigError("data.shots is more than there are training cases", found=shots, expected=len(case_ids))
    return sorted(_shuffled(case_ids, f"{seed}:shots")[:shots])


def _split(case_ids: Sequence[str], held_out: Sequence[str]) -> Split:
    return {"train": sorted({*case_ids} - {*held_out}), "val": sorted(held_out)}


def _check_different(case_ids: Sequence[str]) -> None:
    if len(set(case_ids)) != len(case_ids):
        repeated = sorted({name for name in case_ids if list(case_ids).count(name) > 1})
        raise DataError("case names must be different", found=", ".join(repeated))


def _shuffled(names: Sequence[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}:{name}".encode()).hexdigest())
