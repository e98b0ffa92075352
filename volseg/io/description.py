"""The one reader of ``dataset.json``: labels, channels and listed cases as Decathlon, MONAI and nnU-Net write them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volseg.errors import DataError
from volseg.io.cases import Case, case_names
from volseg.io.description_checks import FOUND_LENGTH, check_entries, doubtful_channels, misspelt_keys
from volseg.io.findings import Finding
from volseg.io.json_files import read_json
from volseg.io.labels import LabelMap, make_label_map
from volseg.io.paths import is_folder, listed_path

logger = logging.getLogger(__name__)

FILE_NAME = "dataset.json"
PATIENT_KEYS = ("patient", "patient_id", "subject", "subject_id")
"""Keys of a listed case that say whose scan it is; the first counts."""
LONGEST_NAME = 200
"""Most characters of a data set's name."""


@dataclass(frozen=True)
class Description:
    """The content of a ``dataset.json``; listed files are not checked.

    Attributes:
        file: The file.
        name: Name of the data set, if it is stated.
        labels: The classes, regions included, if they are stated.
        channels: Names of the channels, if they are stated.
        cases: The listed cases with labels (``training`` and ``validation``, or nnU-Net's ``dataset``); ``None`` if the
            file lists none, so that folders decide. Those under ``validation`` are held out in fold 0.
        unlabelled: The cases listed under ``test``.
        file_ending: Ending of nnU-Net's files, with its dot, if it is stated.
        names_channels: Whether it has nnU-Net v2's ``channel_names``.
        findings: What is doubtful: keys that are probably misspelt, channels that disagree.
        validation: How many of the cases, the last ones, are listed under ``validation``.
    """

    file: Path
    name: str | None
    labels: LabelMap | None
    channels: tuple[str, ...] | None
    cases: tuple[Case, ...] | None
    unlabelled: tuple[Case, ...]
    file_ending: str | None
    names_channels: bool
    findings: tuple[Finding, ...] = ()
    validation: int = 0

    @property
    def modality(self) -> str | None:
        """``ct`` or ``mri``; ``None`` if the channels are not stated."""
        return None if self.channels is None else modality_of(self.channels)


def modality_of(channels: tuple[str, ...]) -> str:
    """Return ``ct`` if every channel is called CT, else ``mri`` (intensities without a fixed scale)."""
    return "ct" if all(channel.strip().lower() == "ct" for channel in channels) else "mri"


def read_description(path: str | Path, label_errors: list[DataError] | None = None) -> Description:
    """Read a ``dataset.json``.

    Args:
        path: The file, or the folder that holds it.
        label_errors: Takes the error of labels that are not valid, which then are none; otherwise it is raised.

    Raises:
        DataError: The file is missing, not JSON, or a part of it has another form than both dialects.
    """
    file = Path(path) / FILE_NAME if is_folder(Path(path)) else Path(path)
    content = read_json(file, "dataset", DataError)
    if not isinstance(content, dict):
        raise DataError("dataset.json is not an object", file=file, found=type(content).__name__, expected="{...}")
    channels = content.get("channel_names", content.get("modality"))
    with _expecting(file, '"modality": {"0": "CT"}, or "channel_names": {"0": "CT"}'):
        channel_names = None if channels is None else _names(channels)
        doubtful = tuple(doubtful_channels(content, file))
    return Description(
        file=file,
        name=_name(content["name"], file) if content.get("name") else None,
        labels=_valid_labels(content, file, label_errors) if content.get("labels") else None,
        channels=channel_names,
        cases=_cases(content, file),
        validation=len(content.get("validation") or ()) if "training" in content else 0,
        unlabelled=_unlabelled(content.get("test") or (), file),
        file_ending=_file_ending(content.get("file_ending"), file),
        names_channels="channel_names" in content,
        findings=(*misspelt_keys(content, file), *doubtful),
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
        similar = [one.message for one in description.findings if one.message.endswith('"labels"?')]
        hint = f"dataset.json has {similar[0]}" if similar else None
        raise DataError("dataset.json has no labels", file=description.file, expected=expected, hint=hint)
    return description.labels


def is_dataset_name(name: object) -> bool:
    """Return whether a value can name a data set: printable text of at most 200 characters, not only dots."""
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME and bool(name.strip(". "))


def _name(name: object, file: Path) -> str:
    if not is_dataset_name(name):
        found, expected = repr(name)[:100], f"printable text of at most {LONGEST_NAME} characters"
        raise DataError('"name" in dataset.json cannot be used', file=file, found=found, expected=expected)
    return str(name)


def _file_ending(ending: object, file: Path) -> str | None:
    if not (ending is None or (isinstance(ending, str) and ending.startswith("."))):
        expected = '"file_ending": ".nii.gz"'
        raise DataError("dataset.json is not as expected", file=file, found=repr(ending)[:100], expected=expected)
    return ending


def _valid_labels(content: Mapping[str, Any], file: Path, errors: list[DataError] | None) -> LabelMap | None:
    """Return the classes; ``None`` if they are not valid and there is a list that takes the error."""
    try:
        return _label_map(content, file)
    except DataError as error:
        if errors is None:
            raise
        errors.append(error)
        return None


def _label_map(content: Mapping[str, Any], file: Path) -> LabelMap:
    """Return the classes, with the order in which nnU-Net paints regions."""
    label_map, order = _labels(content["labels"], file), content.get("regions_class_order")
    if order is None or not label_map.regions:
        return label_map
    if not (
        isinstance(order, list)
        and len(order) == len(label_map.classes)
        and all(type(value) is int and value in label_map.known_values for value in order)
    ):
        raise DataError(
            "regions_class_order in dataset.json is not valid",
            file=file,
            found=repr(order)[:100],
            expected=f"a label value for each of {', '.join(label_map.classes)}",
            hint="list the values that the classes paint, in the order of labels: the outer regions first",
        )
    return replace(label_map, region_order=tuple(order))


def _labels(labels: Any, file: Path) -> LabelMap:
    """Return the label map of Decathlon's ``{"1": "liver"}`` or nnU-Net's ``{"liver": 1}``."""
    with _expecting(file, '"labels": {"0": "background", "1": ...} or {"background": 0, ...}'):
        if not isinstance(labels, Mapping):
            raise TypeError(f"labels: {labels}"[:FOUND_LENGTH])
        pairs = list(labels.items())
        if all(key.removeprefix("-").isdecimal() and isinstance(name, str) for key, name in pairs):
            if len(set(labels.values())) < len(labels):
                raise DataError("two label values have the same name", file=file, found=labels)
            if len({int(value) for value in labels}) < len(labels):
                raise DataError("a label value is given twice", file=file, found=labels, expected="different values")
            labels = {name: int(value) for value, name in pairs}
    return make_label_map(labels, file)


def _cases(content: Mapping[str, Any], file: Path) -> tuple[Case, ...] | None:
    """Return the listed cases; ``None`` if there is no list."""
    if "dataset" in content and "training" not in content:
        expected = '"dataset": {"case": {"images": [...], "label": ...}}'
        with _expecting(file, expected):
            entries = _of_type(content["dataset"], dict, "dataset")
            check_entries(entries.items(), ("images", "label"), file, expected)
            return tuple(
                Case(name, _files(entry["images"], file.parent), _path(entry["label"], file.parent))
                for name, entry in entries.items()
            )
    if "training" not in content:
        return None
    expected = '"training": [{"image": ..., "label": ...}]'
    with _expecting(file, expected):
        training = _of_type(content["training"], list, "training")
        validation = _of_type(content.get("validation") or [], list, "validation")
        for key, listed in (("training", training), ("validation", validation)):
            named = ((f"entry {number} of {key}", entry) for number, entry in enumerate(listed, start=1))
            check_entries(named, ("image", "label"), file, expected)
        folds = [entry.get("fold") for entry in training]
        folds += _validation_folds(validation, file, stated=any(fold is not None for fold in folds))
        entries = [*training, *validation]
        names = case_names([_files(entry["image"], file.parent) for entry in entries])
        return tuple(_case(name, entry, fold, file) for name, entry, fold in zip(names, entries, folds, strict=True))


def _of_type(value: Any, kind: type, key: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{key}: {value}"[:FOUND_LENGTH])
    return value


def _validation_folds(validation: Any, file: Path, *, stated: bool) -> list[Any]:
    """Return the folds of entries under ``validation``: 0, or their own where entries under ``training`` have some."""
    if not stated and any(entry.get("fold") not in (None, 0) for entry in validation):
        logger.warning("%s: the cases under validation are held out in fold 0; their own folds are not used", file)
    return [entry.get("fold", 0) if stated else 0 for entry in validation]


def _case(name: str, entry: Mapping[str, Any], fold: Any, file: Path) -> Case:
    """Return the case of an entry that is held out in a fold, if MONAI's list states one."""
    patient = _patient(entry)
    if not (fold is None or (type(fold) is int and fold >= 0)):
        raise DataError(
            "the fold of a case in dataset.json is not a whole number",
            file=file,
            found=f"{name}: {fold!r:.50}",
            expected="0 or more, or no fold",
        )
    return Case(name, _files(entry["image"], file.parent), _path(entry["label"], file.parent), patient, fold)


def _patient(entry: Mapping[str, Any]) -> str | None:
    """Return whose scan an entry lists, if it says so."""
    patient = next((entry[key] for key in PATIENT_KEYS if entry.get(key) is not None), None)
    return None if patient is None else str(patient)


def _unlabelled(test: Any, file: Path) -> tuple[Case, ...]:
    """Return the cases of ``test``: paths, lists of paths, or objects with ``image``."""
    with _expecting(file, '"test": ["imagesTs/x.nii.gz"]'):
        rows = [_files(entry["image"] if isinstance(entry, Mapping) else entry, file.parent) for entry in test]
        patients = [_patient(entry) if isinstance(entry, Mapping) else None for entry in test]
        return tuple(
            Case(name, files, None, patient)
            for name, files, patient in zip(case_names(rows), rows, patients, strict=True)
        )


def _files(paths: Any, folder: Path) -> tuple[Path, ...]:
    """Return the files of one path, or of a list with one a channel."""
    items = paths if isinstance(paths, list) else [paths]
    if not items:
        raise ValueError("a case without image files")
    return tuple(_path(item, folder) for item in items)


def _path(path: Any, folder: Path) -> Path:
    """Return a path relative to the file's folder; nnU-Net's lists may hold environment variables."""
    if not isinstance(path, str):
        raise TypeError(f"a path is expected: {path!r:.100}")
    return listed_path(os.path.expandvars(path), folder)


def _names(names: Any) -> tuple[str, ...]:
    """Return channel names from ``{"0": "T1", "1": "T2"}``, a list, or one name."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, Mapping):
        if not all(key.isdecimal() for key in names):
            raise ValueError(f"the channel numbers are {', '.join(names)}"[:FOUND_LENGTH])
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(name) for name in names)


@contextmanager
def _expecting(file: Path, expected: str) -> Iterator[None]:
    """Turn a missing key or a value of the wrong type into a DataError that shows the expected form."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else error
        raise DataError("dataset.json is not as expected", file=file, found=found, expected=expected) from error
