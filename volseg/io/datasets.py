"""Folders of labelled scans in the layouts people have: Decathlon, nnU-Net v2 raw, and images/ beside labels/."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import DataError
from volseg.io.cases import Case, case_name, find_volumes, group_channels, list_images, refuse, sorted_cases
from volseg.io.volumes import read_mask, read_volume

__all__ = ["Case", "Dataset", "case_name", "list_images", "read_dataset"]

logger = logging.getLogger(__name__)

AIR_HU = -200  # an image without a stated modality that goes below this is taken for CT


@dataclass(frozen=True)
class Dataset:
    """A folder of labelled scans.

    Attributes:
        name: Name of the dataset.
        root: Its folder.
        cases: The labelled cases, sorted by id.
        channels: What each channel is, e.g. ``("CT",)`` or ``("T1", "FLAIR")``.
        labels: Class name -> value in the files, by ascending value; background is 0 and first.
        ignore_label: Value of voxels that are neither trained on nor scored; not among ``labels``.
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: dict[str, int]
    ignore_label: int | None

    @property
    def modality(self) -> str:
        """``"ct"`` if every channel is CT, else ``"mri"`` (intensities without a fixed scale)."""
        return "ct" if all(channel.strip().lower() == "ct" for channel in self.channels) else "mri"


def read_dataset(root: str | Path) -> Dataset:
    """Finds the cases of a dataset folder; which layout it has is seen from its files.

    - Decathlon: ``dataset.json`` that lists ``training`` pairs.
    - nnU-Net v2 raw: ``dataset.json`` with ``channel_names``; ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz``.
    - plain: ``images/`` and ``labels/`` with the same file names; ``dataset.json`` may give ``labels``, ``modality``
      and ``name``, otherwise the label values are collected from the files.

    No voxels are read, except in a plain folder whose ``dataset.json`` does not say what they are.

    Args:
        root: The folder.

    Raises:
        DataError: There is no dataset, it has no cases, a file is missing or without its partner, or
            ``dataset.json`` is not valid.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError("the dataset folder does not exist", file=root)
    description = _read_description(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    if "training" in description:
        dataset = _read_decathlon(root, description)
    elif "channel_names" in description:
        dataset = _read_nnunet(root, description)
    elif (root / "images").is_dir() and (root / "labels").is_dir():
        dataset = _read_plain(root, description)
    else:
        raise DataError(
            "there is no dataset in this folder",
            file=root,
            found=", ".join(sorted(path.name for path in root.iterdir())[:10]) or "an empty folder",
            expected="dataset.json with 'training' (Decathlon) or 'channel_names' (nnU-Net), or images/ and labels/",
        )
    if not dataset.cases:
        raise DataError(
            "the dataset has no labelled cases",
            file=root,
            expected="scans with labels; in a Decathlon folder, listed under 'training' in dataset.json",
            hint="add labelled cases, or list them",
        )
    return dataset


def _read_description(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError("dataset.json cannot be read", file=file, found=error) from error
    if not isinstance(values, dict):
        raise DataError("dataset.json is not an object", file=file, found=type(values).__name__, expected="{...}")
    return values


@contextmanager
def _expecting(file: Path, expected: str) -> Iterator[None]:
    """Turns a missing key or a value of the wrong kind into a DataError that shows what was expected."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError("dataset.json is not as expected", file=file, found=repr(error), expected=expected) from error


def _read_decathlon(root: Path, description: Mapping[str, Any]) -> Dataset:
    """Pairs as listed; files that are not listed are left alone."""
    file = root / "dataset.json"
    with _expecting(file, '"training": [{"image": ..., "label": ...}], "labels": {"0": "background", "1": ...}'):
        pairs = [(root / entry["image"], root / entry["label"]) for entry in description["training"]]
        channels = _names(description.get("modality", "MRI"))
        named = [(str(name), int(value)) for value, name in description["labels"].items()]
    labels, ignore = _classes(named, file)
    cases = [Case(case_name(image), _channel_files(image), label) for image, label in pairs]
    missing = (path for case in cases for path in (*case.images, case.label) if path and not path.is_file())
    refuse("files listed in dataset.json do not exist", file, missing, hint="restore them, or take the cases out")
    return Dataset(_dataset_name(root, description), root, sorted_cases(cases, root), channels, labels, ignore)


def _channel_files(image: Path) -> tuple[Path, ...]:
    """The listed file; or, where it stands for several (nnU-Net v1), ``case_0000``, ``case_0001`` ... beside it."""
    if image.is_file() or not image.parent.is_dir():
        return (image,)
    return group_channels(find_volumes(image.parent)).get(case_name(image), (image,))


def _read_nnunet(root: Path, description: Mapping[str, Any]) -> Dataset:
    """``imagesTr/<case>_<channel><file_ending>`` and ``labelsTr/<case><file_ending>``."""
    file = root / "dataset.json"
    with _expecting(file, '"channel_names": {"0": ...}, "labels": {"background": 0, ...}'):
        values = dict(description["labels"])
        regions = [name for name, value in values.items() if isinstance(value, list)]
        refuse("labels made of several values (regions) are not read", file, regions, hint="give each class one value")
        channels = _names(description["channel_names"])
        named = [(str(name), int(value)) for name, value in values.items()]
    labels, ignore = _classes(named, file)
    images = group_channels(find_volumes(root / "imagesTr"))
    references = _by_name(root / "labelsTr")
    _check_pairs(root, images, references)
    numbers = tuple(f"_{number:04d}" for number in range(len(channels)))
    found = {name: tuple(case_name(path).removeprefix(name) for path in paths) for name, paths in images.items()}
    wrong = (f"{name}: {', '.join(ends)}" for name, ends in found.items() if ends != numbers)
    refuse(f"cases without exactly the channels {', '.join(numbers)}", root / "imagesTr", wrong)
    cases = [Case(name, paths, references[name]) for name, paths in images.items()]
    return Dataset(_dataset_name(root, description), root, sorted_cases(cases, root), channels, labels, ignore)


def _read_plain(root: Path, description: Mapping[str, Any]) -> Dataset:
    """``images/x.nii.gz`` and ``labels/x.nii.gz``."""
    file = root / "dataset.json"
    images, references = _by_name(root / "images"), _by_name(root / "labels")
    _check_pairs(root, images, references)
    cases = sorted_cases([Case(name, (path,), references[name]) for name, path in images.items()], root)
    if not cases:
        raise DataError("images/ and labels/ hold no scans", file=root, expected=".nii.gz files of the same names")
    with _expecting(file, '"labels": {"background": 0, "liver": 1, ...}, "modality": "CT" or "MRI"'):
        named = [(str(name), int(value)) for name, value in description.get("labels", {}).items()]
        channels = _names(description["modality"]) if "modality" in description else _guessed_channels(cases[0])
    labels, ignore = _classes(named or _discovered_labels(references.values()), file if named else root / "labels")
    return Dataset(_dataset_name(root, description), root, cases, channels, labels, ignore)


def _dataset_name(root: Path, description: Mapping[str, Any]) -> str:
    return str(description.get("name") or root.resolve().name)


def _names(names: Any) -> tuple[str, ...]:
    """Channel names from ``{"0": "T1", "1": "T2"}``, a list, or one name."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(name) for name in names)


def _classes(named: list[tuple[str, int]], file: Path) -> tuple[dict[str, int], int | None]:
    """The classes by ascending value, background first, and the value of the label called "ignore"."""
    ignore = next((value for name, value in named if name.lower() == "ignore"), None)
    classes = [(name, value) for name, value in named if name.lower() != "ignore"]
    if all(value != 0 for _, value in classes):
        classes.append(("background", 0))
    values = [value for _, value in classes] + ([] if ignore is None else [ignore])
    if len(dict(classes)) < len(classes) or len(set(values)) < len(values) or min(v for _, v in classes) < 0:
        expected = "different names, different values, none negative, 0 for the background"
        raise DataError("the labels are not valid", file=file, found=dict(named), expected=expected)
    if len(classes) < 2:
        raise DataError("there is no class but the background", file=file, found=dict(named))
    return dict(sorted(classes, key=lambda item: item[1])), ignore


def _by_name(folder: Path) -> dict[str, Path]:
    """A folder's scans by case name."""
    cases = sorted_cases([Case(case_name(path), (path,), None) for path in find_volumes(folder)], folder)
    return {case.id: case.images[0] for case in cases}


def _check_pairs(root: Path, images: Iterable[str], references: Iterable[str]) -> None:
    with_image, with_label = set(images), set(references)
    lonely = [f"{name}: image without label" for name in sorted(with_image - with_label)]
    lonely += [f"{name}: label without image" for name in sorted(with_label - with_image)]
    refuse("images and labels do not pair up", root, lonely, hint="add the missing files, or move these away")


def _guessed_channels(case: Case) -> tuple[str, ...]:
    data = read_volume(case.images[0]).data
    modality = "CT" if data.min() < AIR_HU else "MRI"
    hint = 'say otherwise by "modality" in dataset.json'
    logger.info("%s: taken for %s by its values (%s)", case.images[0], modality, hint)
    return (modality,) * len(data)


def _discovered_labels(files: Iterable[Path]) -> list[tuple[str, int]]:
    values = {int(value) for path in files for value in np.unique(read_mask(path).labels)}
    return [("background" if value == 0 else f"label_{value}", value) for value in sorted(values)]
