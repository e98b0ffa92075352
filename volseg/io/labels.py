"""The classes of a data set and the label values of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

    A network for classes of one value each decides between them and the background. If there is a region, a class of
    several values, it decides about every class alone, and masks are painted class by class (nnU-Net's regions).

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
        """Names of the network's outputs: the background, then the classes by ascending value; or all with regions."""
        if self.regions:
            return tuple(self.classes)
        return (self.background, *sorted(self.classes, key=self.classes.__getitem__))

    @property
    def label_values(self) -> Values:
        """Label values by class index: 0, then all others, ascending; the ignore label has none."""
        return (0, *sorted({value for values in self.classes.values() for value in values}))

    @property
    def region_indices(self) -> tuple[Values, ...]:
        """Class indices of each class, in the order of ``classes``; nothing without regions."""
        values = self.label_values
        return tuple(tuple(map(values.index, group)) for group in self.classes.values()) if self.regions else ()

    def to_plain(self) -> dict[str, int]:
        """Return name -> value in masks, background included, as plans and model files store it.

        Without regions the classes are in the order of the class index. A region has the value that it paints.
        """
        if self.regions:
            assert self.region_order is not None  # `check_trainable` completes it
            return {self.background: 0, **dict(zip(self.classes, self.region_order, strict=True))}
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
                found=f"{name}: {values_text(values)}",
                expected='"background": 0',
            )
        if ignore in values:
            raise DataError(
                f"class {name!r} holds the value of the ignore label",
                file=file,
                found=f"{name}: {values_text(values)}, {IGNORE_NAME}: {ignore}",
                expected="a value of its own for the ignore label",
            )


def _values(label: object) -> Values:
    """Return label values, ascending; none if one of them is not a whole number."""
    items = label if isinstance(label, (list, tuple)) else [label]
    if not all(isinstance(item, (int, np.integer, str)) and str(item).lstrip("-").isdecimal() for item in items):
        return ()
    return tuple(sorted({int(str(item)) for item in items}))


def with_region_order(label_map: LabelMap) -> LabelMap:
    """Return the label map with a ``region_order``, if it has regions; one that is stated is kept.

    Otherwise the classes go from the largest region to the smallest. Later classes paint over earlier ones, so a region
    paints a value that no later class holds, if it has one.
    """
    classes = label_map.classes
    if not label_map.regions or label_map.region_order is not None:
        return label_map
    names = sorted(classes, key=lambda name: (-len(classes[name]), classes[name]))
    order = []
    for at, name in enumerate(names):
        later = {value for other in names[at + 1 :] for value in classes[other]}
        order.append(min(set(classes[name]) - later or classes[name]))
    return replace(label_map, classes={name: classes[name] for name in names}, region_order=tuple(order))


def check_trainable(label_map: LabelMap, file: str | Path | None = None) -> LabelMap:
    """Check that a network can learn the classes: they exclude each other, or are regions that a mask can hold.

    Args:
        label_map: The classes.
        file: Where they come from, for error messages.

    Returns:
        The same label map, with a ``region_order`` if it has regions.

    Raises:
        DataError: Two labels share a value, or a class has the value 0 or that of ``ignore``; or regions cannot be told
            from the values that they paint.
    """
    if label_map.regions:
        label_map = with_region_order(label_map)
        _check_painting(label_map, file)
        return label_map
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


def _check_painting(label_map: LabelMap, file: str | Path | None) -> None:
    """Check that a mask whose classes are painted in their order holds the same regions.

    Raises:
        DataError: Two classes paint the same value, or a voxel is painted with a value of other regions than its own.
    """
    groups, order = list(label_map.classes.values()), label_map.region_order
    assert order is not None
    problems = [] if len(set(order)) == len(order) else ["two classes paint the same value"]
    for value in label_map.label_values[1:]:
        own = [number for number, group in enumerate(groups) if value in group]
        painted = order[own[-1]]
        if own != [number for number, group in enumerate(groups) if painted in group]:
            problems.append(f"{value} is painted as {painted}, which belongs to other regions")
    if problems:
        raise DataError(
            "masks cannot hold these regions",
            file=file,
            found=f"{'; '.join(problems)} (regions_class_order: {', '.join(map(str, order))})",
            expected="regions within each other, the outer ones first, each painting a value of its own",
            hint="order the regions and regions_class_order so, or give classes that exclude each other",
        )


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
            problems.append(f"{name} is {values_text(their_values)}, not {values_text(values)}")
        elif their_values is None and values in owner:
            problems.append(f"{values_text(values)} is {owner[values]}, not {name}")
    if problems:
        raise DataError(
            "the predictions have another label map",
            file=file,
            found="; ".join(problems),
            expected="the same names for the same values as in the reference",
            hint="convert the predicted labels, or give the --dataset that belongs to these references",
        )


def check_segment_names(names: Mapping[str, int], label_map: LabelMap, file: str | Path) -> None:
    """Check that the names which a label file states for its values are those of the label map.

    Args:
        names: Name -> value, as the file states them (``.seg.nrrd``). Names that the label map lacks are passed over.
        label_map: The classes.
        file: The label file.

    Raises:
        DataError: A class has another value in the file; all are listed.
    """
    ours = {plain_name(name): (name, values) for name, values in label_map.classes.items()}
    wrong = {
        ours[plain_name(name)][0]: value
        for name, value in names.items()
        if plain_name(name) in ours and value not in ours[plain_name(name)][1]
    }
    if wrong:
        raise DataError(
            "the label file numbers its segments otherwise than the data set",
            file=file,
            found=", ".join(f"{name} is {value}" for name, value in sorted(wrong.items())),
            expected=", ".join(f"{name} is {values_text(label_map.classes[name])}" for name in sorted(wrong)),
            hint="export all segmentations with the same numbers; 3D Slicer numbers segments as they were made",
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


def values_text(values: Values) -> str:
    """Return label values as text: ``1+2``."""
    return "+".join(map(str, values))
