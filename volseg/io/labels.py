"""Which classes there are and which label values each of them has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import DataError
from volseg.geometry.volume import LARGEST_LABEL

Values = tuple[int, ...]


@dataclass(frozen=True)
class LabelMap:
    """Classes and their label values.

    Attributes:
        classes: Name -> values; several values are scored as one region. Without the background.
        ignore_label: Reference value that is left out of everything.
    """

    classes: dict[str, Values]
    ignore_label: int | None = None

    @property
    def known_values(self) -> frozenset[int]:
        """All values that a label map may hold, the background (0) and the ignore value included."""
        values = {value for group in self.classes.values() for value in group} | {0}
        return frozenset(values if self.ignore_label is None else values | {self.ignore_label})


def make_label_map(labels: Mapping[str, object], file: Path | None = None) -> LabelMap:
    """Label map from name -> value or values; ``background`` is left out and ``ignore`` is set apart.

    Args:
        labels: For example ``{"background": 0, "liver": 1, "tumour": [2, 3], "ignore": 4}``.
        file: Where they come from, for error messages.

    Raises:
        DataError: A value is not a whole number from 0 to 65535, or there is no class.
    """
    classes: dict[str, Values] = {}
    ignore = None
    for name, given in labels.items():
        values = _values(given)
        if not values or values[0] < 0 or values[-1] > LARGEST_LABEL:
            raise DataError(
                f"class {name!r} has no usable label value",
                file=file,
                found=given,
                expected=f"a whole number from 0 to {LARGEST_LABEL}, or several",
            )
        if name == "ignore" and len(values) == 1:
            ignore = values[0]
        elif values != (0,):
            classes[name] = values
    if not classes:
        raise DataError("there is no class to score", file=file, found=dict(labels), expected="a label besides 0")
    return LabelMap(classes, ignore)


def _values(given: object) -> Values:
    """Label values in order; empty if one is not a whole number."""
    items = given if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(item, (int, np.integer, str)) and str(item).lstrip("-").isdecimal() for item in items):
        return ()
    return tuple(sorted({int(str(item)) for item in items}))


def read_label_map(path: str | Path) -> LabelMap:
    """The ``labels`` of a ``dataset.json``: Decathlon's ``{"1": "liver"}`` or nnU-Net's ``{"liver": 1}``.

    Raises:
        DataError: The file is missing or has no usable labels.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            "the label file cannot be read", file=path, found=str(error), expected="a dataset.json"
        ) from error
    labels: Any = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise DataError("the label file has no labels", file=path, expected='"labels": {"liver": 1, ...}')
    if all(key.isdecimal() and isinstance(name, str) for key, name in labels.items()):
        if len(set(labels.values())) < len(labels):
            raise DataError("two label values have the same name", file=path, found=labels)
        labels = {name: int(value) for value, name in labels.items()}
    return make_label_map(labels, path)


def check_agreement(ours: LabelMap, theirs: LabelMap, file: Path) -> None:
    """Refuse a prediction's label map in which a class has other values, or a value another class.

    Args:
        ours: The label map that is scored.
        theirs: The label map the predictions were made with; it may hold further classes.
        file: Where ``theirs`` was read.

    Raises:
        DataError: They disagree; every disagreement is listed.
    """
    other = {plain_name(name): values for name, values in theirs.classes.items()}
    owner = {values: name for name, values in theirs.classes.items()}
    wrong = []
    for name, values in ours.classes.items():
        found = other.get(plain_name(name))
        if found is not None and found != values:
            wrong.append(f"{name} is {_text(found)}, not {_text(values)}")
        elif found is None and values in owner:
            wrong.append(f"{_text(values)} is {owner[values]}, not {name}")
    if wrong:
        raise DataError(
            "the predictions have another label map",
            file=file,
            found="; ".join(wrong),
            expected="the same names for the same values as in the reference",
            hint="convert the predicted labels, or give the --dataset that belongs to these references",
        )


def plain_name(name: str) -> str:
    """Name by which files and classes are matched: case, spaces, hyphens and underscores do not matter."""
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _text(values: Values) -> str:
    return "+".join(map(str, values))
