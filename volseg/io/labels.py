"""The classes of a data set and the label values of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError
from volseg.geometry.volume import LARGEST_LABEL

Values = tuple[int, ...]
COUNTED_AT_ONCE = 1 << 22
"""Voxels, about, of which label values are counted at once."""
IGNORE_NAME = "ignore"
"""Name of the label that is left out of training and scoring, in any capitalisation (nnU-Net's convention)."""


@dataclass(frozen=True)
class LabelMap:
    """Classes and their label values.

    Attributes:
        classes: Name -> values, ascending. A class of several values is a region. The background is not among them.
        ignore_label: Value of the voxels that count neither in the loss nor in scores.
        background: Name of the value 0.
        region_order: Where classes are regions, the value that each class paints, in the order of ``classes``
            (nnU-Net's ``regions_class_order``); ``None`` if it is not stated.
    """

    classes: dict[str, Values]
    ignore_label: int | None = None
    background: str = field(default="background", compare=False)
    region_order: Values | None = field(default=None, compare=False)

    @property
    def known_values(self) -> frozenset[int]:
        """Every value that a label file may hold, background (0) and ignore label included."""
        values = {value for group in self.classes.values() for value in group} | {0}
        return frozenset(values if self.ignore_label is None else values | {self.ignore_label})

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the classes that have several values."""
        return tuple(name for name, values in self.classes.items() if len(values) > 1)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index: the background, then the classes by ascending value."""
        return (self.background, *sorted(self.classes, key=self.classes.__getitem__))

    @property
    def label_values(self) -> Values:
        """Values by class index: 0, then those of the classes, ascending. Regions have no class index."""
        return (0, *sorted(value for (value,) in self.classes.values()))

    def to_plain(self) -> dict[str, int]:
        """Return name -> value by class index, background included, as plans and model files store it."""
        return dict(zip(self.class_names, self.label_values, strict=True))


def make_label_map(labels: Mapping[str, object], file: str | Path | None = None) -> LabelMap:
    """Make a label map from name -> value or values.

    Args:
        labels: For example ``{"background": 0, "liver": 1, "tumour": [2, 3], "ignore": 4}``.
        file: Where the labels come from, for error messages.

    Raises:
        DataError: A value is not a whole number from 0 to 65535, two names differ in spaces only, two labels have the
            same values, ``ignore`` has several values or shares one, a class has the value 0 of the background, or
            there is no class.
    """
    classes: dict[str, Values] = {}
    ignore, background = None, "background"
    named: dict[str, Values] = {}
    owners: dict[Values, str] = {}
    for given_name, label in labels.items():
        values = _values(label)
        name = str(given_name).strip()
        if not name or name in named:
            what = f"two labels are called {name!r}" if name else "a label has no name"
            raise DataError(what, file=file, found=dict(labels), expected="a different name for each label")
        if not values or values[0] < 0 or values[-1] > LARGEST_LABEL:
            raise DataError(
                f"class {name!r} has no usable label value",
                file=file,
                found=label,
                expected=f"a whole number from 0 to {LARGEST_LABEL}, or several",
                hint='names and values are mixed up; write {"background": 0, "liver": 1}' if name.isdecimal() else None,
            )
        if values in owners:
            raise DataError(
                f"the labels {owners[values]!r} and {name!r} have the same value",
                file=file,
                found=dict(labels),
                expected="different values for different labels",
            )
        named[name], owners[values] = values, name
        if name.lower() == IGNORE_NAME:
            if ignore is not None or len(values) > 1:
                what = "two labels are called ignore" if ignore is not None else "the ignore label has several values"
                raise DataError(what, file=file, found=dict(labels), expected="one value")
            ignore = values[0]
        elif values == (0,):
            background = name
        else:
            classes[name] = values
    if not classes:
        expected = 'at least one class, such as {"background": 0, "liver": 1}'
        raise DataError("there is no class but the background", file=file, found=dict(labels), expected=expected)
    _check_overlaps(classes, ignore, file)
    return LabelMap(classes, ignore, background)


def _check_overlaps(classes: Mapping[str, Values], ignore: int | None, file: str | Path | None) -> None:
    """Check that no class holds the background or ignored voxels: they would count in its scores."""
    for name, values in classes.items():
        if 0 in values or name.lower() == "background":
            raise DataError(
                "the background must have the value 0, and no other label may hold it",
                file=file,
                found=f"{name}: {_text(values)}",
                expected='"background": 0',
            )
        if ignore in values:
            raise DataError(
                f"class {name!r} holds the value of the ignore label",
                file=file,
                found=f"{name}: {_text(values)}, {IGNORE_NAME}: {ignore}",
                expected="a value of its own for the ignore label",
            )


def _values(label: object) -> Values:
    """Return label values, ascending; none if one of them is not a whole number."""
    items = label if isinstance(label, (list, tuple)) else [label]
    if not all(isinstance(item, (int, np.integer, str)) and str(item).lstrip("-").isdecimal() for item in items):
        return ()
    return tuple(sorted({int(str(item)) for item in items}))


def check_exclusive(label_map: LabelMap, file: str | Path | None = None) -> LabelMap:
    """Check that every voxel belongs to exactly one class, as training needs it.

    Args:
        label_map: The classes.
        file: Where they come from, for error messages.

    Returns:
        The same label map.

    Raises:
        DataError: There is a region, or two labels share a value, or a class has the value 0 or that of ``ignore``.
    """
    if label_map.regions:
        raise DataError(
            "labels made of several values (regions) cannot be trained",
            file=file,
            found=", ".join(label_map.regions),
            hint="give each class one value; volseg convert and volseg evaluate read regions",
        )
    values = [value for (value,) in label_map.classes.values()]
    taken = {0, *values}
    if len(taken) <= len(values) or label_map.ignore_label in taken or label_map.background in label_map.classes:
        raise DataError(
            "the labels are not valid",
            file=file,
            found={
                **{name: value for name, (value,) in label_map.classes.items()},
                IGNORE_NAME: label_map.ignore_label,
            },
            expected="different names, different values, none negative, 0 for the background",
        )
    return label_map


def check_agreement(ours: LabelMap, theirs: LabelMap, file: Path) -> None:
    """Check that the label map of predictions does not contradict the one that is scored.

    Args:
        ours: The label map that is scored.
        theirs: The label map that the predictions were made with; it may hold further classes.
        file: Where ``theirs`` was read.

    Raises:
        DataError: A class has other values, or a value belongs to another class; every disagreement is listed.
    """
    other = {plain_name(name): values for name, values in theirs.classes.items()}
    owner = {values: name for name, values in theirs.classes.items()}
    problems = []
    for name, values in ours.classes.items():
        their_values = other.get(plain_name(name))
        if their_values is not None and their_values != values:
            problems.append(f"{name} is {_text(their_values)}, not {_text(values)}")
        elif their_values is None and values in owner:
            problems.append(f"{_text(values)} is {owner[values]}, not {name}")
    if problems:
        raise DataError(
            "the predictions have another label map",
            file=file,
            found="; ".join(problems),
            expected="the same names for the same values as in the reference",
            hint="convert the predicted labels, or give the --dataset that belongs to these references",
        )


def value_counts(labels: NDArray[Any]) -> dict[int, int]:
    """Return value -> voxels of the values that occur in a mask of any shape, ascending."""
    if not labels.size or int(labels.min()) < 0 or int(labels.max()) > LARGEST_LABEL:
        values, counts = np.unique(labels, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    table = np.zeros(int(labels.max()) + 1, np.int64)
    for part in np.array_split(labels, 1 + labels.size // COUNTED_AT_ONCE, axis=-1):  # bincount copies to int64
        table += np.bincount(part.ravel(order="K"), minlength=len(table))
    return {value: int(table[value]) for value in np.flatnonzero(table).tolist()}


def plain_name(name: str) -> str:
    """Return the form in which names of files and classes are compared: case, spaces, ``-`` and ``_`` do not matter."""
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _text(values: Values) -> str:
    return "+".join(map(str, values))
