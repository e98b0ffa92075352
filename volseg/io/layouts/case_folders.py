"""A folder per case: ``case/image.nii.gz`` and ``case/label.nii.gz``, or ``BraTS_001/BraTS_001_t1.nii.gz`` ..."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from volseg.errors import DataError
from volseg.io.cases import Case, list_folder, listed, refuse
from volseg.io.description import Description
from volseg.io.findings import Finding
from volseg.io.layouts.found import LABEL_WORDS, USE_CSV, Found, by_name, channel_order, modality_name, without
from volseg.io.paths import is_folder

logger = logging.getLogger(__name__)

SEPARATORS = "_-. "
SEPARATED = re.compile(r"[^_\-. ]*$")  # the last word of a name

Roles = dict[str, Path]
"""Role of a file, such as ``t1`` or ``seg``: its name without that of the case -> the file."""


def find(root: Path, description: Description | None) -> Found | None:
    """Return the cases of the folders directly in ``root`` that hold scans; ``None`` if no folder has a label.

    The role of a file is its name without the folder's name, or without the start that all files of the folder share.
    The file whose role ends in ``seg``, ``label``, ``mask`` ... is the label; the others are channels, in the order of
    ``dataset.json`` if it names them, else of their roles. Folders without a label are cases without one.

    Findings are folders with several labels, and folders with other channels than most.

    Raises:
        DataError: No channels are those of most folders, or some are called like labels or predictions.
    """
    folders = {path.name: path for path in list_folder(root) if is_folder(path) and not path.name.startswith(".")}
    findings: list[Finding] = []
    roles = {name: _roles(folder, findings) for name, folder in folders.items()}
    roles = {name: files for name, files in roles.items() if files}
    labels = {name: [role for role in files if _is_label(role)] for name, files in roles.items()}
    if not any(len(label) > 0 and len(roles[name]) > len(label) for name, label in labels.items()):
        return None
    findings += _ambiguous(roles, labels)
    roles = {name: files for name, files in roles.items() if len(labels[name]) < 2}
    if not roles:
        return Found((), findings=tuple(findings))
    images = {
        name: {role: path for role, path in files.items() if not _is_label(role)} for name, files in roles.items()
    }
    columns, others = _common_roles(root, images)
    findings += others
    images = {name: files for name, files in images.items() if sorted(files) == columns}
    order, source = channel_order(columns, description.channels if description is not None else None, root)
    cases = [
        Case(name, tuple(files[role] for role in order), roles[name][labels[name][0]] if labels[name] else None)
        for name, files in images.items()
    ]
    cases = list(without(cases, findings))
    _log(root, cases, order, source)
    names = None if description is not None and description.channels is not None else tuple(map(modality_name, order))
    return Found(
        cases=tuple(case for case in cases if case.label is not None),
        unlabelled=tuple(case for case in cases if case.label is None),
        channels=None if names == ("unknown",) else names,
        findings=(*findings, *_findings(root, cases, order, columns)),
    )


def _ambiguous(roles: Mapping[str, Roles], labels: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Yield the folders that have several labels."""
    for name, label in labels.items():
        if len(label) > 1:
            files = tuple(roles[name][role] for role in label)
            text = f"{name}: several files that may be the label: {', '.join(file.name for file in files)}"
            yield Finding("pairing", files, text, USE_CSV)


def _findings(root: Path, cases: list[Case], order: tuple[str, ...], columns: list[str]) -> Iterator[Finding]:
    """Yield what is left out: cases without a label, and images that are no channels."""
    unused = [role for role in columns if role not in order]
    if unused:
        text = f"not a channel of dataset.json, not read: {listed(unused)}"
        yield Finding("passed-over", (root,), text)
    for case in cases:
        if case.label is None:
            yield Finding("unlabelled", (case.images[0].parent,), f"{case.id} has no label")


def _roles(folder: Path, findings: list[Finding]) -> Roles:
    """Return the scans of a folder by their roles.

    Raises:
        DataError: Two files have the same role.
    """
    files = by_name(folder, findings)
    start = folder.name
    if not any(stem == start or stem.startswith(tuple(start + mark for mark in SEPARATORS)) for stem in files):
        shared = os.path.commonprefix(list(files)) if len(files) > 1 else ""  # noqa: RUF071 (of names, not paths)
        start = SEPARATED.sub("", shared)
    roles: Roles = {}
    for stem, path in files.items():
        role = stem.removeprefix(start).strip(SEPARATORS)
        if role in roles:
            refuse("two files of a case differ only in the name of the case", folder, [roles[role].name, path.name])
        roles[role] = path
    return roles


def _is_label(role: str) -> bool:
    return SEPARATED.findall(role.lower())[0] in LABEL_WORDS


def _common_roles(root: Path, images: Mapping[str, Roles]) -> tuple[list[str], list[Finding]]:
    """Return the roles of the images, sorted, of most folders, and a finding for every other folder.

    Raises:
        DataError: Most folders have no roles in common, or there is no folder.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, files in images.items():
        groups.setdefault(tuple(sorted(files)), []).append(name)
    kinds = sorted(groups.items(), key=lambda item: -len(item[1]))
    common, names = kinds[0] if kinds else ((), [])
    if 2 * len(names) <= len(images):
        counts = [f"{_text(kind)}: {len(own)} of {len(images)} folders, such as {own[0]}" for kind, own in kinds[:20]]
        found = "\n    ".join(counts)
        raise DataError("the folders of the cases hold different images", file=root, found=found, hint=USE_CSV)
    findings = [
        Finding("channels", (root / name,), f"{name}: {_text(kind)}; most folders: {_text(common)}", USE_CSV)
        for kind, own in kinds[1:]
        for name in own
    ]
    return list(common), findings


def _text(roles: Iterable[str]) -> str:
    return ", ".join(role or "(no suffix)" for role in roles) or "no image"


def _log(root: Path, cases: list[Case], order: tuple[str, ...], source: str) -> None:
    """Log what was taken for what."""
    example = next((case for case in cases if case.label is not None), None)
    if example is None:
        return
    text = "%s: a folder per case; channels %s (order: %s), label %s in %s"
    names = ", ".join(path.name for path in example.images)
    logger.info(text, root, names, source, example.label.name if example.label else None, example.id)
