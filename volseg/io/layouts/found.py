"""What a layout finds in a folder, and what several layouts share."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError, suggestion
from volseg.io.cases import LISTED, Case, case_name, find_volumes, listed, of_one_patient, passed_over
from volseg.io.findings import Finding, errors_of
from volseg.io.labels import LabelMap
from volseg.io.modality import UNKNOWN
from volseg.io.paths import is_file, is_folder, is_link

SAME_NAME = (
    "give image and label the same name, as in images/a.nii.gz and labels/a.nii.gz (an image may end in "
    "a channel number such as _0000), or list the pairs in a CSV with the columns image and label"
)
USE_CSV = "list the files in a CSV with the columns image and label, and give the CSV as the data set"

LABEL_WORDS = frozenset(
    ("seg", "segm", "segmentation", "dseg", "label", "labels", "labelmap", "mask", "gt", "groundtruth", "annotation")
)
"""Last words of the names of label files."""
MASK_WORDS = LABEL_WORDS | frozenset(
    (
        *("segs", "segmentations", "segmented", "masks", "labelmaps", "annotations"),
        *("contour", "contours", "roi", "rois"),
        *("pred", "preds", "predicted", "prediction", "predictions", "manual", "rater"),
        *("prob", "probs", "probability", "probabilities", "softmax", "uncertainty"),
    )
)
"""Words in names of masks, predictions and maps of a model; scans are not called so."""
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


@dataclass(frozen=True)
class Found:
    """The cases of a folder in one layout.

    Attributes:
        cases: Scans with labels.
        unlabelled: Scans without labels, such as those of ``imagesTs``.
        channels: Names of the channels, where files or columns state them or their order.
        label_map: The classes, where files beside the labels state them.
        labels_required: Whether ``dataset.json`` must state the classes; otherwise they are collected from the labels.
        test_split: Whether the scans without labels are a test set.
        findings: What is wrong with files and folders; cases with errors are not among the cases.
    """

    cases: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    channels: tuple[str, ...] | None = None
    label_map: LabelMap | None = None
    labels_required: bool = False
    test_split: bool = False
    findings: tuple[Finding, ...] = ()


def by_name(folder: Path, findings: list[Finding]) -> dict[str, Path]:
    """Return the scans of a folder by case name; files of the same name (``x.nii``, ``x.nii.gz``) become a finding.

    Raises:
        DataError: The folder cannot be read.
    """
    groups: dict[str, list[Path]] = {}
    for path in find_volumes(folder):
        groups.setdefault(case_name(path), []).append(path)
    for name, paths in groups.items():
        if len(paths) > 1:
            findings.append(Finding("case-name", tuple(paths), name))
    return {name: paths[0] for name, paths in sorted(groups.items())}


def paired(
    images: Mapping[str, tuple[Path, ...]], references: Mapping[str, Path], folder: Path
) -> tuple[tuple[Case, ...], list[Finding]]:
    """Pair images and labels of the same case name.

    Args:
        images: Case name -> image files.
        references: Case name -> label file.
        folder: That of the labels, for the message.

    Returns:
        The pairs, and a finding for every image and every label without its partner; the first ones name a file that is
        called alike.
    """
    findings: list[Finding] = []
    without_label = {key: paths[0] for key, paths in images.items() if key not in references}
    without_image = {key: path for key, path in references.items() if key not in images}
    suffix = next((path.name.removeprefix(name) for name, path in references.items()), ".nii.gz")
    for name in sorted(images.keys() ^ references.keys()):
        if name in images:
            files, text = images[name], f"{name}: image without label {folder.name}/{name}{suffix}"
            others = without_image
        else:
            files, text = (references[name],), f"{name}: label without image"
            others = without_label
        similar = _similar(name, others) if len(findings) < LISTED else None
        if similar is not None:
            text += f"; {others[similar].name} {_difference(name, similar)}"
        findings.append(Finding("pairing", files, text, SAME_NAME if similar is not None else None))
    both = sorted(images.keys() & references.keys())
    return tuple(Case(name, images[name], references[name]) for name in both), findings


def _difference(name: str, similar: str) -> str:
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", similar):
        return "looks the same, but its letters are in another Unicode form (NFC, NFD)"
    return "differs only in capitals" if similar.casefold() == name.casefold() else "is similar"


def _similar(name: str, others: Iterable[str]) -> str | None:
    """Return the name that differs in capitals only, begins alike (``a`` and ``a_seg``), or is spelt alike."""
    plain = {unicodedata.normalize("NFC", other).casefold(): other for other in others}
    key = unicodedata.normalize("NFC", name).casefold()
    if key in plain:
        return plain[key]
    longer = [other for other in plain if other.startswith(key) and not other[len(key)].isalnum()]
    longer += [other for other in plain if key.startswith(other) and not key[len(other)].isalnum()]
    similar = longer[0] if longer else suggestion(key, plain)
    return None if similar is None else plain[similar]


def check_numbers(
    groups: Mapping[str, Sequence[Path]], channels: int
) -> tuple[dict[str, tuple[Path, ...]], list[Finding]]:
    """Check that the files of each case are numbered ``_0000``, ``_0001`` ... without a hole.

    Returns:
        The files by case, and a finding for each case that is numbered otherwise.
    """
    expected = [f"_{number:04d}" for number in range(channels)]
    findings = []
    for name, paths in groups.items():
        endings = [case_name(path).removeprefix(name) for path in paths]
        if endings != expected:
            text = f"{name}: {', '.join(end or 'no number' for end in endings)}; expected: {', '.join(expected)}"
            findings.append(Finding("channels", tuple(paths), text))
    return {name: tuple(paths) for name, paths in groups.items()}, findings


def without(cases: Iterable[Case], findings: Iterable[Finding]) -> tuple[Case, ...]:
    """Return the cases without those whose files some errors name."""
    files = {file for finding in errors_of(findings) for file in finding.files}
    return tuple(case for case in cases if files.isdisjoint((*case.images, case.label)))


def repeated_names(cases: Sequence[Case], entries: Sequence[str]) -> list[Finding]:
    """Return a finding for every name that several cases have.

    Args:
        cases: The cases of a list.
        entries: Where each stands in the list, for the message.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        groups[case.id].append(number)
    return [
        Finding(
            "case-name",
            tuple(dict.fromkeys(path for number in group for path in cases[number].images)),
            f"{name}: {listed([entries[number] for number in group])}",
            "give every case a name of its own, and list it once",
        )
        for name, group in groups.items()
        if len(group) > 1
    ]


def missing_files(cases: Iterable[Case]) -> list[Finding]:
    """Return a finding for every case whose files do not all exist."""
    findings = []
    for case in cases:
        for path in (*case.images, *((case.label,) if case.label is not None else ())):
            series = path in case.images and is_folder(path)
            if not is_file(path) and not series:
                kind = "dangling-link" if is_link(path) else "missing-file"
                text = f"leads to {path.readlink()}" if is_link(path) else "does not exist"
                findings.append(Finding(kind, (path,), f"{case.id}: {text}"))
    return findings


def shared_files(cases: Iterable[Case]) -> list[Finding]:
    """Return a finding for every case that has a file twice, and for every label file of several images.

    Registered scans of one patient may share a label: those whose patient is stated are no finding.
    """
    findings: list[Finding] = []
    labels: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        findings += _files_twice(case)
        if case.label is not None:
            labels[os.path.realpath(case.label)].append(case)
    for group in labels.values():
        if len({case.images for case in group}) > 1 and not of_one_patient(group):
            label, names = group[0].label, listed([case.id for case in group])
            assert label is not None  # the cases of labels
            findings.append(Finding("shared-label", (label,), f"the label of {len(group)} cases: {names}"))
    return findings


def _files_twice(case: Case) -> Iterator[Finding]:
    """Yield a finding for each file that stands for several channels of a case, or for image and label."""
    roles: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for number, path in enumerate(case.images):
        roles[os.path.realpath(path)].append((f"channel {number}", path))
    if case.label is not None:
        roles[os.path.realpath(case.label)].append(("the label", case.label))
    for same in roles.values():
        if len(same) > 1:
            yield Finding("same-file", (same[0][1],), f"{case.id}: {' and '.join(role for role, _ in same)}")


def others_in(*folders: Path) -> list[Finding]:
    """Return a finding for every entry of some folders that is not read as a scan."""
    return [Finding("passed-over", (path,), "not read as a scan") for folder in folders for path in passed_over(folder)]


def channel_order(names: Iterable[str], stated: tuple[str, ...] | None, file: Path) -> tuple[tuple[str, ...], str]:
    """Return which channels there are, in their order, and who says so.

    Args:
        names: The channels as files or columns are called, in the order to take if nothing else states one.
        stated: The channels of ``dataset.json``.
        file: The data set, for the message.

    Returns:
        Names as files or columns have them, and ``"dataset.json"`` or ``"their names"``.

    Raises:
        DataError: ``dataset.json`` states channels that no file is called by; or it states none, and a channel is
            called like a label or a prediction.
    """
    plain = {_plain(name): name for name in names}
    if stated is None or (len(stated) == len(plain) == 1):
        _refuse_masks([name for key, name in plain.items() if key not in map(_plain, stated or ())], plain, file)
        return tuple(plain.values()), "their names"
    missing = [name for name in stated if _plain(name) not in plain]
    if missing:
        raise DataError(
            "dataset.json states channels that the files do not have",
            file=file,
            found=", ".join(plain.values()),
            expected=", ".join(stated),
            hint=f"name the channels in dataset.json as the files are called, or {USE_CSV}",
        )
    return tuple(plain[_plain(name)] for name in stated), "dataset.json"


def _refuse_masks(candidates: Sequence[str], names: Mapping[str, str], file: Path) -> None:
    """Refuse channels that are called like labels or predictions; a network that sees the answer learns to copy it."""
    masks = [name for name in candidates if any(word.lower() in MASK_WORDS for word in WORDS.findall(name))]
    if masks:
        raise DataError(
            "labels or predictions would be channels of the image, by their names",
            file=file,
            found=f"{listed(masks)} among {listed([name or '(no suffix)' for name in names.values()])}",
            expected="scans, and one label",
            hint='move or remove these files or columns, or state the channels in dataset.json: "channel_names"',
        )


def _plain(name: str) -> str:
    return name.strip().casefold()


GENERIC = frozenset({"", "image", "images", "img", "scan", "volume", "vol", "data", "0", "0000"})
"""Names of image files that say nothing about their modality."""


def modality_name(name: str) -> str:
    """Return the name of a channel that a file or column is called by; ``unknown`` for one such as ``image``."""
    return UNKNOWN if _plain(name) in GENERIC else name
