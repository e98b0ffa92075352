"""The one reader of ``dataset.json``: labels, channels and listed cases in the dialects of Decathlon and nnU-Net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from volseg.errors import DataError
from volseg.io.json_files import read_json
from volseg.io.labels import LabelMap, make_label_map
from volseg.io.paths import is_folder

FILE_NAME = "dataset.json"
LONGEST_NAME = 200
"""Most characters of a data set's name."""
Layout = Literal["decathlon", "nnunet", "plain"]


@dataclass(frozen=True)
class ListedPair:
    """An image and its label, as ``training`` or ``validation`` lists them.

    Attributes:
        image: Path of the scan (not checked).
        label: Path of the reference (not checked). Its name and folder may differ from the image's.
        patient: Whose scan it is, if ``patient`` states it.
        fold: The fold in which it is held out: its ``fold`` (as in MONAI's data lists), else 0 under ``validation``.
    """

    image: Path
    label: Path
    patient: str | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Description:
    """The content of a ``dataset.json``.

    Attributes:
        file: The file.
        layout: ``decathlon`` lists its cases under ``training``; ``nnunet`` has ``channel_names``; ``plain`` neither.
        name: Name of the data set, if it is stated.
        labels: The classes, regions included, if they are stated.
        channels: Names of the channels, if they are stated.
        pairs: The listed cases; empty for the other layouts.
    """

    file: Path
    layout: Layout
    name: str | None
    labels: LabelMap | None
    channels: tuple[str, ...] | None
    pairs: tuple[ListedPair, ...]

    @property
    def modality(self) -> str | None:
        """``ct`` or ``mri``; ``None`` if the channels are not stated."""
        return None if self.channels is None else modality_of(self.channels)


def modality_of(channels: tuple[str, ...]) -> str:
    """Return ``ct`` if every channel is called CT, else ``mri`` (intensities without a fixed scale)."""
    return "ct" if all(channel.strip().lower() == "ct" for channel in channels) else "mri"


def read_description(path: str | Path) -> Description:
    """Read a ``dataset.json``.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        DataError: The file is missing, not JSON, or a part of it has another form than both dialects.
    """
    file = Path(path) / FILE_NAME if is_folder(Path(path)) else Path(path)
    content = read_json(file, "dataset", DataError)
    if not isinstance(content, dict):
        raise DataError("dataset.json is not an object", file=file, found=type(content).__name__, expected="{...}")
    layout: Layout = "decathlon" if "training" in content else "nnunet" if "channel_names" in content else "plain"
    channels = content.get("channel_names", content.get("modality"))
    with _expecting(file, '"modality": {"0": "CT"}, or "channel_names": {"0": "CT"}'):
        channel_names = None if channels is None else _names(channels)
    return Description(
        file=file,
        layout=layout,
        name=_name(content["name"], file) if content.get("name") else None,
        labels=_labels(content["labels"], file) if content.get("labels") else None,
        channels=channel_names,
        pairs=_pairs(content, file) if layout == "decathlon" else (),
    )


def read_label_map(path: str | Path) -> LabelMap:
    """Read the classes of a ``dataset.json``.

    Raises:
        DataError: The file is missing or has no usable labels.
    """
    return required_labels(read_description(path))


def required_labels(description: Description) -> LabelMap:
    """Return the classes of a description.

    Raises:
        DataError: The file does not state any.
    """
    if description.labels is None:
        expected = '"labels": {"background": 0, "liver": 1} (nnU-Net) or {"0": "background", "1": "liver"} (Decathlon)'
        raise DataError("dataset.json has no labels", file=description.file, expected=expected)
    return description.labels


def is_dataset_name(name: object) -> bool:
    """Return whether a value can name a data set: printable text of at most 200 characters, not only dots."""
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME and bool(name.strip(". "))


def _name(name: object, file: Path) -> str:
    if not is_dataset_name(name):
        found, expected = repr(name)[:100], f"printable text of at most {LONGEST_NAME} characters"
        raise DataError('"name" in dataset.json cannot be used', file=file, found=found, expected=expected)
    return str(name)


def _labels(labels: Any, file: Path) -> LabelMap:
    """Return the label map of Decathlon's ``{"1": "liver"}`` or nnU-Net's ``{"liver": 1}``."""
    with _expecting(file, '"labels": {"0": "background", "1": ...} or {"background": 0, ...}'):
        if not isinstance(labels, Mapping):
            raise TypeError(f"labels: {labels}")
        pairs = list(labels.items())
        if all(key.removeprefix("-").isdecimal() and isinstance(name, str) for key, name in pairs):
            if len(set(labels.values())) < len(labels):
                raise DataError("two label values have the same name", file=file, found=labels)
            if len({int(value) for value in labels}) < len(labels):
                raise DataError("a label value is given twice", file=file, found=labels, expected="different values")
            labels = {name: int(value) for value, name in pairs}
    return make_label_map(labels, file)


def _pairs(content: Mapping[str, Any], file: Path) -> tuple[ListedPair, ...]:
    """Return the entries of ``training`` and ``validation``."""
    with _expecting(file, '"training": [{"image": ..., "label": ...}]'):
        training = [_pair(entry, file.parent, None) for entry in content["training"]]
        return (*training, *(_pair(entry, file.parent, 0) for entry in content.get("validation", ())))


def _pair(entry: Mapping[str, Any], folder: Path, fold: int | None) -> ListedPair:
    fold, patient = entry.get("fold", fold), entry.get("patient")
    if not (fold is None or (isinstance(fold, int) and fold >= 0)):
        raise ValueError(f"fold: {fold!r}")
    patient = None if patient is None else str(patient)
    return ListedPair(folder / entry["image"], folder / entry["label"], patient, fold)


def _names(names: Any) -> tuple[str, ...]:
    """Return channel names from ``{"0": "T1", "1": "T2"}``, a list, or one name."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(name) for name in names)


@contextmanager
def _expecting(file: Path, expected: str) -> Iterator[None]:
    """Turn a missing key or a value of the wrong type into a DataError that shows the expected form."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError("dataset.json is not as expected", file=file, found=repr(error), expected=expected) from error
