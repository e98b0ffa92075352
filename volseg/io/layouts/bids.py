"""BIDS: ``sub-01/anat/sub-01_T1w.nii.gz`` and labels in ``derivatives/NAME/sub-01/anat/sub-01_dseg.nii.gz``.

Source: the Brain Imaging Data Structure, specification 1.9, "Imaging data types" (derivatives) for segmentations.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError, counted
from volseg.io.cases import Case, find_volumes, list_folder, listed, refuse
from volseg.io.description import Description
from volseg.io.findings import Finding
from volseg.io.labels import LabelMap, make_label_map
from volseg.io.layouts.found import USE_CSV, Found, channel_order
from volseg.io.paths import is_file, is_folder
from volseg.io.volumes import volume_stem

logger = logging.getLogger(__name__)

SCAN_FOLDERS = ("anat", "ct", "pet")
LABEL_SUFFIXES = ("dseg", "mask")
"""Suffixes of label files; a mask counts where there is no segmentation (``dseg``)."""
NATIVE_SPACES = ("orig", "individual", "native")
"""Values of ``space`` that mean the scan's own grid, besides the scan's suffix."""


@dataclass(frozen=True)
class BidsFile:
    """A file and what its name says.

    Attributes:
        path: The file.
        session: Name of the case: ``sub-01``, or ``sub-01_ses-02``.
        kind: What is left of its name: further entities and the suffix, such as ``acq-high_T1w``.
    """

    path: Path
    session: str
    kind: str

    @property
    def patient(self) -> str:
        """The subject, ``sub-01``."""
        return self.session.split("_")[0]

    @property
    def suffix(self) -> str:
        """The last part of the name: ``T1w``, ``dseg``."""
        return self.kind.rsplit("_", 1)[-1]

    def entity(self, key: str) -> str | None:
        """Return the value of a further entity, such as ``label`` or ``space``."""
        parts = (part.partition("-") for part in self.kind.split("_"))
        return next((value for name, _, value in parts if name == key), None)


def find(root: Path, description: Description | None) -> Found | None:
    """Return the labelled sessions; ``None`` if the folder has no subjects or no ``derivatives/``.

    Channels are the kinds of scans (``T1w``, ``FLAIR``, ``acq-high_T2w``) that every labelled session has, or those of
    ``dataset.json``. The names of the classes come from ``dseg.tsv``, where there is one.

    Raises:
        DataError: There are no labels, several kinds of labels, or no kind of scan that all labelled sessions have.
    """
    if not is_folder(root / "derivatives") or not any(True for _ in _subjects(root)):
        return None
    scans = _by_session(_files(root, SCAN_FOLDERS))
    references, pipeline, findings = _references(root, {kind for files in scans.values() for kind in files})
    labelled = sorted(scans.keys() & references.keys())
    if not labelled:
        expected = "derivatives/NAME/sub-XX/anat/sub-XX_dseg.nii.gz for scans sub-XX/anat/sub-XX_T1w.nii.gz"
        raise DataError("no scan of this BIDS data set has a label", file=root, expected=expected, hint=USE_CSV)
    order = _channels(root, {session: scans[session] for session in labelled}, description)
    _log(root, references[labelled[0]].path, scans, order)
    cases = [
        Case(
            name,
            tuple(files[kind].path for kind in order),
            references[name].path if name in references else None,
            files[order[0]].patient,
        )
        for name, files in sorted(scans.items())
        if all(kind in files for kind in order)
    ]
    names = None if description is not None and description.channels is not None else order
    return Found(
        cases=tuple(case for case in cases if case.label is not None),
        unlabelled=tuple(case for case in cases if case.label is None),
        channels=names,
        label_map=_label_names(references[labelled[0]], pipeline),
        findings=(*findings, *_unpaired(scans, references)),
    )


def _subjects(folder: Path) -> Iterator[Path]:
    return (path for path in list_folder(folder) if path.name.startswith("sub-") and is_folder(path))


def _files(root: Path, folders: tuple[str, ...] | None = None) -> Iterator[BidsFile]:
    """Yield the volumes below the subjects of a folder, with or without sessions.

    Args:
        root: The folder.
        folders: Names of the folders that hold volumes, such as ``anat``; ``None`` takes all.
    """
    for subject in _subjects(root):
        inner = [path for path in list_folder(subject) if is_folder(path)]
        inner += [path for session in inner if session.name.startswith("ses-") for path in list_folder(session)]
        for folder in inner:
            if is_folder(folder) and (folders is None or folder.name in folders):
                yield from (_parsed(path) for path in find_volumes(folder) if path.name.startswith("sub-"))


def _parsed(path: Path) -> BidsFile:
    """Return what the name of a file says."""
    parts = volume_stem(path).split("_")
    session = [part for part in parts if part.startswith(("sub-", "ses-"))]
    return BidsFile(path, "_".join(session), "_".join(part for part in parts if part not in session))


def _by_session(files: Iterable[BidsFile]) -> dict[str, dict[str, BidsFile]]:
    """Return session -> kind -> file.

    Raises:
        DataError: Two files differ in their suffixes (``.nii``, ``.nii.gz``) or folders only.
    """
    sessions: dict[str, dict[str, BidsFile]] = {}
    for file in files:
        kinds = sessions.setdefault(file.session, {})
        if file.kind in kinds:
            both = [kinds[file.kind].path, file.path]
            refuse("two files of a session have the same name", file.path.parent, both, hint="remove one of them")
        kinds[file.kind] = file
    return sessions


def _unpaired(scans: Mapping[str, Mapping[str, BidsFile]], references: Mapping[str, BidsFile]) -> Iterator[Finding]:
    """Yield the sessions that have only a scan or only a label."""
    for session in sorted(scans.keys() - references.keys()):
        files = tuple(file.path for file in scans[session].values())
        yield Finding("unlabelled", files, f"{session} has no label")
    for session in sorted(references.keys() - scans.keys()):
        yield Finding("no-image", (references[session].path,), f"{session} has no scan")


def _references(root: Path, scan_kinds: Iterable[str]) -> tuple[dict[str, BidsFile], Path, list[Finding]]:
    """Return session -> label file of the one kind of label, its folder in ``derivatives/``, and labels not read.

    Raises:
        DataError: There are several kinds.
    """
    spaces = {*NATIVE_SPACES, *(kind.rsplit("_", 1)[-1] for kind in scan_kinds)}
    pipelines = [path for path in list_folder(root / "derivatives") if is_folder(path)]
    kinds: dict[tuple[Path, str], dict[str, BidsFile]] = {}
    elsewhere: dict[str, Path] = {}
    for pipeline in pipelines:
        labels = _by_session(file for file in _files(pipeline) if file.suffix in LABEL_SUFFIXES)
        for file in (file for files in labels.values() for file in files.values()):
            if file.entity("space") in (None, *spaces):
                kinds.setdefault((pipeline, file.kind), {})[file.session] = file
            else:
                elsewhere.setdefault(f"{pipeline.name}/{file.kind}", file.path)
    text = "labels in another space than the scans, not read"
    findings = [Finding("passed-over", (path,), f"{text}: {kind}") for kind, path in elsewhere.items()]
    segmentations = {key: files for key, files in kinds.items() if key[1].endswith(LABEL_SUFFIXES[0])}
    kinds = segmentations or kinds
    if len(kinds) > 1:
        found = [f"{pipeline.name}/{kind} ({counted(len(files), 'scan')})" for (pipeline, kind), files in kinds.items()]
        raise DataError("there are several kinds of labels", file=root, found=listed(found), expected=1, hint=USE_CSV)
    (pipeline, _), files = next(iter(kinds.items()), ((root, ""), {}))
    return files, pipeline, findings


def _channels(
    root: Path, sessions: Mapping[str, Mapping[str, BidsFile]], description: Description | None
) -> tuple[str, ...]:
    """Return the kinds of scans that are channels, in their order."""
    common = sorted(set.intersection(*(set(files) for files in sessions.values())))
    if not common:
        found = [f"{session}: {', '.join(sorted(files))}" for session, files in sessions.items()]
        problem = "no kind of scan is there for all labelled sessions"
        raise DataError(problem, file=root, found=listed(found), hint=USE_CSV)
    order, _ = channel_order(common, description.channels if description is not None else None, root)
    return order


def _log(
    root: Path,
    label: Path,
    scans: Mapping[str, Mapping[str, BidsFile]],
    order: tuple[str, ...],
) -> None:
    """Log what was taken for what; ``label`` is an example."""
    logger.info("%s: BIDS; channels %s, labels such as %s", root, ", ".join(order), label.relative_to(root))
    others = sorted({kind for files in scans.values() for kind in files} - set(order))
    if others:
        logger.info("%s: scans that are not channels, not read: %s", root, listed(others))


def _label_names(reference: BidsFile, pipeline: Path) -> LabelMap | None:
    """Return the classes of the table beside a label, or in the folder of its pipeline; ``None`` without one."""
    beside = reference.path.with_name(f"{volume_stem(reference.path)}.tsv")
    tables = (beside, pipeline / f"{reference.kind}.tsv", pipeline / "dseg.tsv")
    file = next((path for path in tables if is_file(path)), None)
    if file is not None:
        return make_label_map(_table(file), file)
    name = reference.entity("label") if reference.suffix == "mask" else None
    return make_label_map({name: 1}) if name else None


def _table(file: Path) -> dict[str, object]:
    """Return name -> index, as BIDS writes them for a segmentation."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        return {row["name"]: int(row["index"]) for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        expected = "columns index and name, separated by tabs"
        raise DataError(
            "the names of the labels cannot be read", file=file, found=repr(error), expected=expected
        ) from error
