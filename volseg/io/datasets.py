"""Data sets of labelled scans; `LAYOUTS` lists the arrangements of files that are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from volseg.errors import DataError, VolsegError, counted, missing_hint
from volseg.io.cases import Case, GridRule, case_name, list_images, sorted_cases
from volseg.io.description import FILE_NAME, Description, modality_of, read_description, required_labels
from volseg.io.findings import Finding, errors_of, refuse_errors, report
from volseg.io.label_content import check_is_label_map, check_not_negative
from volseg.io.labels import LabelMap, check_trainable, make_label_map, value_counts
from volseg.io.layouts import bids, case_folders, listed, nnunet, plain, table
from volseg.io.layouts.found import USE_CSV, Found, shared_files, without
from volseg.io.modality import UNKNOWN
from volseg.io.paths import is_file, is_folder
from volseg.io.remarks import collect
from volseg.io.volumes import count_channels, read_mask

logger = logging.getLogger(__name__)

__all__ = ["Case", "Dataset", "case_name", "is_dataset", "list_images", "read_dataset"]

LAYOUTS: tuple[Callable[[Path, Description | None], Found | None], ...] = (
    listed.find,
    nnunet.find,
    plain.find,
    bids.find,
    case_folders.find,
)
"""The layouts of folders; the first that knows a folder reads it. A new one is a module like `plain`, and an entry."""
EXPECTED = (
    "dataset.json with 'training' (Decathlon), imagesTr/ and labelsTr/ (nnU-Net), images/ and labels/, "
    "a folder per case, or BIDS with derivatives/"
)


IMAGE_FOLDERS = ("images", "image", "img", "imgs", "imagestr", "scans", "volumes")
LABEL_FOLDERS = ("labels", "label", "labelstr", "masks", "mask", "segmentations", "segmentation", "segs", "seg")
"""Folders, lower case, that may be meant as ``images/`` and ``labels/``."""


@dataclass(frozen=True)
class Dataset:
    """A set of labelled scans.

    Attributes:
        name: Name of the data set.
        root: Its folder, or its CSV.
        cases: The labelled cases, sorted by id.
        channels: What each channel is, e.g. ``("CT",)`` or ``("T1", "FLAIR")``; ``"unknown"`` where nothing states it.
        label_map: The classes; those of several values are regions.
        unlabelled: Scans without labels, such as those of ``imagesTs``, sorted by id.
        test_split: Whether the scans without labels are a test set.
        findings: What is wrong with files and folders, or worth knowing.
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    label_map: LabelMap
    unlabelled: tuple[Case, ...] = ()
    test_split: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> value in masks, as the plan stores it; the background (0) first."""
        return self.label_map.to_plain()

    @property
    def ignore_label(self) -> int | None:
        """Value of voxels that are neither trained on nor scored."""
        return self.label_map.ignore_label

    @property
    def modality(self) -> str:
        """``ct`` if every channel is CT, else ``mri`` (intensities without a fixed scale)."""
        return modality_of(self.channels)


def read_dataset(
    root: str | Path, *, trainable: bool = True, strict: bool = True, grids: GridRule | None = None
) -> Dataset:
    """Find the cases of a data set; the layout is detected automatically.

    - Decathlon: ``dataset.json`` lists pairs under ``training``.
    - nnU-Net v2 raw: ``imagesTr/case_0000.nii.gz``, ``labelsTr/case.nii.gz``, and ``channel_names`` in
      ``dataset.json``; or a ``dataset.json`` that lists its files under ``dataset``.
    - plain: ``images/`` and ``labels/`` with the same file names.
    - BIDS: ``sub-01/anat/sub-01_T1w.nii.gz`` and ``derivatives/NAME/sub-01/anat/sub-01_dseg.nii.gz``.
    - a folder per case: ``case/t1.nii.gz``, ``case/seg.nii.gz``.
    - a CSV with the columns ``image`` and ``label``.

    A ``dataset.json`` in any of these may state ``labels``, channels and ``name``. Without labels in it, they are
    collected from the label files, unless the layout requires them. No voxels are read otherwise.

    Args:
        root: The folder, or the CSV.
        trainable: Refuse classes that cannot be trained; see :func:`volseg.io.labels.check_trainable`.
        strict: Raise an error for files that are missing or without a partner, and log what is doubtful. Otherwise
            both are among the ``findings`` of the data set, and only the other cases are among its cases.
        grids: When the grids of a case's files count as the same.

    Raises:
        DataError: There is no data set, it has no cases, several files may be the label of a case, ``dataset.json`` is
            not valid, or, if ``strict``, a file is missing or without its partner.
    """
    root = Path(root)
    is_table = is_file(root) and root.suffix.lower() in table.SUFFIXES
    if not is_folder(root) and not is_table:
        expected, hint = "a folder, or a .csv file", missing_hint(root)
        raise DataError("the dataset folder does not exist", file=root, expected=expected, hint=hint)
    folder = root.parent if is_table else root
    label_errors: list[DataError] | None = None if strict else []
    description = read_description(folder, label_errors) if is_file(folder / FILE_NAME) else None
    found = _checked(table.find(root, description) if is_table else _find(root, description))
    stated = _other_capitals(folder) if description is None else description.findings
    found = replace(found, findings=(*stated, *found.findings))
    if strict:
        refuse_errors(found.findings, root)
        if found.findings:
            logger.warning("%s:\n%s", root, report(found.findings))
    if not found.cases and not errors_of(found.findings):
        raise DataError(
            "the dataset has no labelled cases",
            file=root,
            expected="scans with labels; in a Decathlon folder, listed under 'training' in dataset.json",
            hint="add labelled cases, or list them",
        )
    dataset = _dataset(root, description, found, trainable=trainable, label_errors=label_errors)
    if grids is not None:
        cases, unlabelled = (
            tuple(replace(case, grids=grids) for case in group) for group in (dataset.cases, dataset.unlabelled)
        )
        dataset = replace(dataset, cases=cases, unlabelled=unlabelled)
    return dataset


def is_dataset(root: str | Path) -> bool:
    """Return whether a folder or CSV is a data set of labelled scans, which :func:`read_dataset` reads.

    Raises:
        DataError: It is one, with an error.
    """
    root = Path(root)
    if is_file(root):
        return root.suffix.lower() in table.SUFFIXES
    return is_folder(root) and (is_file(root / FILE_NAME) or any(find(root, None) is not None for find in LAYOUTS))


def _other_capitals(folder: Path) -> list[Finding]:
    """Return a finding for a file that is called ``dataset.json`` in other capitals, and therefore not read."""
    files = [path for path in sorted(folder.iterdir()) if path.name.lower() == FILE_NAME and is_file(path)]
    return [Finding("not-read", (path,), f'"{path.name}"; did you mean "{FILE_NAME}"?') for path in files]


def _find(root: Path, description: Description | None) -> Found:
    """Return what the first layout finds that knows the folder."""
    for find in LAYOUTS:
        found = find(root, description)
        if found is not None:
            unused = _unused_list(description) if find is not listed.find else []
            return replace(found, findings=(*found.findings, *unused))
    entries = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "an empty folder"
    hint = _hint(root)
    raise DataError("there is no dataset in this folder", file=root, found=entries, expected=EXPECTED, hint=hint)


def _hint(root: Path) -> str:
    """Return what probably helps for a folder that has none of the layouts."""
    entries = sorted(root.iterdir())
    tables = [path for path in entries if path.suffix.lower() in table.SUFFIXES]
    if len(tables) == 1:
        return f"did you mean {tables[0]}? give the CSV itself as the data set"
    folders = {path.name.casefold(): path.name for path in entries if is_folder(path)}
    images, labels = ([folders[key] for key in words if key in folders] for words in (IMAGE_FOLDERS, LABEL_FOLDERS))
    if images and labels:
        others = " and ".join(f"{name}/" for name in (images[0], labels[0]) if name not in ("images", "labels"))
        return f"did you mean images/ and labels/? rename {others}, or {USE_CSV}"
    return USE_CSV


def _unused_list(description: Description | None) -> list[Finding]:
    """Return a finding if ``dataset.json`` lists cases, none of which exists, so that folders are read instead."""
    if description is None or not description.cases:
        return []
    count, first = len(description.cases), description.cases[0].images[0]
    text = f"{counted(count, 'case')}, the first with {first}; folders are read"
    return [Finding("list-not-used", (description.file,), text)]


def _checked(found: Found) -> Found:
    """Return what a layout found, with findings of files that are given twice."""
    findings = shared_files(found.cases)
    return replace(found, cases=without(found.cases, findings), findings=(*found.findings, *findings))


def _dataset(
    root: Path, description: Description | None, found: Found, *, trainable: bool, label_errors: list[DataError] | None
) -> Dataset:
    """Complete what a layout found by ``dataset.json`` and the files themselves.

    With a list of errors of the labels, these are findings: the classes are then those of the label files. Damaged
    files that would state classes or channels then give no class, or one channel.
    """
    strict = label_errors is None
    cases = sorted_cases(found.cases, root)
    try:
        label_map = _stated_labels(root, description, found, trainable=trainable) if not label_errors else None
    except DataError as error:
        if label_errors is None:
            raise
        label_errors.append(error)
        label_map = None
    label_map = label_map or _discovered_labels(cases, strict=strict)
    findings = [Finding.of_error(error, root, "labels") for error in label_errors or ()]
    name = description.name if description is not None else None
    channels = found.channels or (description.channels if description is not None else None)
    channels = channels or (UNKNOWN,) * _channel_count(cases, strict=strict)
    unlabelled = sorted_cases(found.unlabelled, root)
    return Dataset(
        name=name or root.resolve().stem,
        root=root,
        cases=cases,
        channels=channels,
        label_map=label_map,
        unlabelled=unlabelled,
        test_split=found.test_split,
        findings=(*findings, *found.findings),
    )


def _stated_labels(root: Path, description: Description | None, found: Found, *, trainable: bool) -> LabelMap | None:
    """Return the classes that ``dataset.json`` or files beside the labels state; ``None`` without either.

    Raises:
        DataError: They must be stated and are not, or cannot be trained.
    """
    label_map, source = found.label_map, root
    if description is not None and (description.labels is not None or found.labels_required):
        label_map, source = required_labels(description), description.file
    return check_trainable(label_map, source) if label_map is not None and trainable else label_map


def _channel_count(cases: Sequence[Case], *, strict: bool) -> int:
    """Return the number of channels of the first case that can be read; the others are checked with their voxels."""
    for case in cases:
        try:
            return sum(map(count_channels, case.images))
        except DataError:
            if strict and case is cases[-1]:
                raise
    return 1


def _discovered_labels(cases: Iterable[Case], *, strict: bool) -> LabelMap:
    """Return a class for every value in the label files.

    Files that cannot be read, that hold no labels, and negative values are reported with their cases.
    """
    values: set[int] = set()
    errors: list[VolsegError] = []
    for path in (case.label for case in cases if case.label is not None):
        try:
            with collect():  # what is doubtful is reported with the cases
                mask = read_mask(path)
                check_is_label_map(mask, path)
            values |= {value for value in value_counts(mask.labels) if value > 0}
            check_not_negative(mask, path)
        except VolsegError as error:
            errors.append(error)
    if not values and not strict:
        return LabelMap({})
    if errors and not values:
        raise errors[0]
    return make_label_map({f"label_{value}": value for value in sorted(values)})
