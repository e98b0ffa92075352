"""Folders of labelled scans in three layouts: Decathlon, nnU-Net v2 raw, and ``images/`` beside ``labels/``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.errors import DataError
from volseg.io.cases import Case, case_name, find_volumes, group_channels, list_images, refuse, sorted_cases
from volseg.io.description import FILE_NAME, Description, modality_of, read_description, required_labels
from volseg.io.labels import LabelMap, check_exclusive, make_label_map
from volseg.io.modality import UNKNOWN
from volseg.io.paths import is_file, is_folder
from volseg.io.volumes import read_mask, read_volume

__all__ = ["Case", "Dataset", "case_name", "list_images", "read_dataset"]


@dataclass(frozen=True)
class Dataset:
    """A folder of labelled scans.

    Attributes:
        name: Name of the data set.
        root: Its folder.
        cases: The labelled cases, sorted by id.
        channels: What each channel is, e.g. ``("CT",)`` or ``("T1", "FLAIR")``; ``"unknown"`` where nothing states it.
        label_map: The classes, each of one value.
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    label_map: LabelMap

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> value in the files, by ascending value; the background (0) first."""
        return self.label_map.to_plain()

    @property
    def ignore_label(self) -> int | None:
        """Value of voxels that are neither trained on nor scored."""
        return self.label_map.ignore_label

    @property
    def modality(self) -> str:
        """``ct`` if every channel is CT, else ``mri`` (intensities without a fixed scale)."""
        return modality_of(self.channels)


def read_dataset(root: str | Path) -> Dataset:
    """Find the cases of a data set folder; the layout is detected automatically.

    - Decathlon: ``dataset.json`` that lists ``training`` pairs. The listed pairs count: names and folders of image and
      label may differ, and files that are not listed are left alone.
    - nnU-Net v2 raw: ``dataset.json`` with ``channel_names``; ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz``.
    - plain: ``images/`` and ``labels/`` with the same file names; ``dataset.json`` may give ``labels``, ``modality``
      and ``name``, otherwise the label values are collected from the files.

    No voxels are read, except in a plain folder without a ``dataset.json`` that states labels and modality.

    Args:
        root: The folder.

    Raises:
        DataError: There is no data set, it has no cases, a file is missing or without its partner, or
            ``dataset.json`` is not valid.
    """
    root = Path(root)
    if not is_folder(root):
        raise DataError("the dataset folder does not exist", file=root)
    description = read_description(root) if is_file(root / FILE_NAME) else None
    if description is not None and description.layout == "decathlon":
        dataset = _read_decathlon(root, description)
    elif description is not None and description.layout == "nnunet":
        dataset = _read_nnunet(root, description)
    elif is_folder(root / "images") and is_folder(root / "labels"):
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


def _read_decathlon(root: Path, description: Description) -> Dataset:
    """Read the listed pairs."""
    cases = [
        Case(case_name(pair.image), _channel_files(pair.image), pair.label, pair.patient, pair.fold)
        for pair in description.pairs
    ]
    missing = (path for case in cases for path in (*case.images, case.label) if path and not is_file(path))
    refuse(
        "files listed in dataset.json do not exist",
        description.file,
        missing,
        hint="restore the files, or remove the cases from the list",
    )
    return _dataset(root, description, cases, description.channels or _unknown_channels(cases[0]))


def _channel_files(image: Path) -> tuple[Path, ...]:
    """Return the listed file or, if it stands for several (nnU-Net v1), ``case_0000``, ``case_0001`` ... beside it."""
    if is_file(image) or not is_folder(image.parent):
        return (image,)
    return group_channels(find_volumes(image.parent)).get(case_name(image), (image,))


def _read_nnunet(root: Path, description: Description) -> Dataset:
    """Read ``imagesTr/<case>_<channel><file_ending>`` and ``labelsTr/<case><file_ending>``."""
    check_exclusive(required_labels(description), description.file)  # before any file is looked for
    channels = description.channels or ()
    images = group_channels(find_volumes(root / "imagesTr"))
    references = _by_name(root / "labelsTr")
    _check_pairs(root, images, references)
    expected = tuple(f"_{number:04d}" for number in range(len(channels)))
    endings = {name: tuple(case_name(path).removeprefix(name) for path in paths) for name, paths in images.items()}
    wrong = (f"{name}: {', '.join(ends)}" for name, ends in endings.items() if ends != expected)
    refuse(f"cases without exactly the channels {', '.join(expected)}", root / "imagesTr", wrong)
    cases = [Case(name, paths, references[name]) for name, paths in images.items()]
    return _dataset(root, description, cases, channels)


def _read_plain(root: Path, description: Description | None) -> Dataset:
    """Read ``images/x.nii.gz`` and ``labels/x.nii.gz``."""
    images, references = _by_name(root / "images"), _by_name(root / "labels")
    _check_pairs(root, images, references)
    cases = sorted_cases([Case(name, (path,), references[name]) for name, path in images.items()], root)
    if not cases:
        raise DataError("images/ and labels/ hold no scans", file=root, expected=".nii.gz files of the same names")
    channels = description.channels if description is not None else None
    if description is not None and description.labels is not None:
        return _dataset(root, description, cases, channels or _unknown_channels(cases[0]))
    label_map = check_exclusive(_discovered_labels(references), root / "labels")
    name = (description.name if description is not None else None) or root.resolve().name
    return Dataset(name, root, cases, channels or _unknown_channels(cases[0]), label_map)


def _dataset(root: Path, description: Description, cases: Iterable[Case], channels: tuple[str, ...]) -> Dataset:
    label_map = check_exclusive(required_labels(description), description.file)
    return Dataset(description.name or root.resolve().name, root, sorted_cases(cases, root), channels, label_map)


def _by_name(folder: Path) -> dict[str, Path]:
    """Return a folder's scans by case name."""
    cases = sorted_cases([Case(case_name(path), (path,), None) for path in find_volumes(folder)], folder)
    return {case.id: case.images[0] for case in cases}


def _check_pairs(root: Path, images: Iterable[str], references: Iterable[str]) -> None:
    with_image, with_label = set(images), set(references)
    unpaired = [f"{name}: image without label" for name in sorted(with_image - with_label)]
    unpaired += [f"{name}: label without image" for name in sorted(with_label - with_image)]
    refuse(
        "images and labels do not pair up",
        root,
        unpaired,
        hint="add the missing files, or move these to another folder",
    )


def _unknown_channels(case: Case) -> tuple[str, ...]:
    """Return as many channels as a case has."""
    return (UNKNOWN,) * len(read_volume(case.images[0]).data)


def _discovered_labels(references: Mapping[str, Path]) -> LabelMap:
    """Return a class for every value that occurs in the label files."""
    values = {int(value) for path in references.values() for value in np.unique(read_mask(path).labels)}
    return make_label_map({f"label_{value}": value for value in sorted(values - {0})})
