"""What a layout finds in a folder, and what several layouts share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError
from volseg.io.cases import Case, case_name, find_volumes, passed_over
from volseg.io.findings import Finding, errors_of
from volseg.io.labels import LabelMap
from volseg.io.modality import UNKNOWN
from volseg.io.paths import is_file, is_folder, is_link

USE_CSV = "list the files in a CSV with the columns image and label, and give the CSV as the data set"


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
    images: Mapping[str, tuple[Path, ...]], references: Mapping[str, Path]
) -> tuple[tuple[Case, ...], list[Finding]]:
    """Pair images and labels of the same case name.

    Returns:
        The pairs, and a finding for every image and every label without its partner.
    """
    findings = []
    for name in sorted(images.keys() ^ references.keys()):
        files = images.get(name) or (references[name],)
        text = f"{name}: image without label" if name in images else f"{name}: label without image"
        others = references if name in images else images
        similar = next((other for other in others if other.casefold() == name.casefold()), None)
        text += f"; {similar} differs only in capitals" if similar is not None else ""
        findings.append(Finding("pairing", files, text))
    both = sorted(images.keys() & references.keys())
    return tuple(Case(name, images[name], references[name]) for name in both), findings


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
        DataError: ``dataset.json`` states channels that no file is called by.
    """
    plain = {_plain(name): name for name in names}
    if stated is None or (len(stated) == len(plain) == 1):
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


def _plain(name: str) -> str:
    return name.strip().casefold()


GENERIC = frozenset({"", "image", "images", "img", "scan", "volume", "vol", "data", "0", "0000"})
"""Names of image files that say nothing about their modality."""


def modality_name(name: str) -> str:
    """Return the name of a channel that a file or column is called by; ``unknown`` for one such as ``image``."""
    return UNKNOWN if _plain(name) in GENERIC else name
