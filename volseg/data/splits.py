"""Splits into training and validation cases, determined by case names and seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from volseg.errors import ConfigError, DataError

Split = dict[str, list[str]]
"""``{"train": [...], "val": [...]}``, case names in alphabetical order."""


def make_splits(case_ids: Sequence[str], seed: int, folds: int = 5) -> list[Split]:
    """Split cases into folds for cross-validation.

    Cases are ordered by a hash of seed and name and assigned in turn, so neither the order of listing nor the version
    of a random generator matters. With fewer cases than folds, folds repeat (fold k holds out case k modulo n).

    Args:
        case_ids: Names, all different.
        seed: Other seeds give other folds.
        folds: Number of folds.

    Returns:
        One split per fold; the validation cases of different folds are disjoint (with enough cases).

    Raises:
        DataError: Fewer than two cases, or a name occurs twice.
    """
    if len(set(case_ids)) != len(case_ids):
        repeated = sorted({name for name in case_ids if list(case_ids).count(name) > 1})
        raise DataError("case names must be different", found=", ".join(repeated))
    if len(case_ids) < 2:
        raise DataError("a split needs at least two cases", found=len(case_ids))
    order = _shuffled(case_ids, f"{seed}:fold")
    groups = min(folds, len(order))
    splits = []
    for fold in range(folds):
        held_out = set(order[fold % groups :: groups])
        train = sorted(name for name in case_ids if name not in held_out)
        splits.append({"train": train, "val": sorted(held_out)})
    return splits


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


def _shuffled(names: Sequence[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}:{name}".encode()).hexdigest())
