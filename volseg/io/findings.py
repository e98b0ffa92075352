"""Findings about a data set: the table of their kinds, and reports that list all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import DataError, VolsegError, counted

SEVERITIES = ("error", "warning", "note")
"""Errors stop training; warnings are for a person to judge; notes say what was done."""
SHOWN = 5
"""Most findings of a kind that a report lists."""


@dataclass(frozen=True)
class Kind:
    """What findings of a kind have in common.

    Attributes:
        severity: One of :data:`SEVERITIES`.
        title: What was found, in one sentence.
        hint: How to fix it.
    """

    severity: str
    title: str
    hint: str


KINDS: dict[str, Kind] = {
    "layout": Kind("error", "the data set cannot be read", "correct dataset.json, or the names of files and folders"),
    "labels": Kind("error", "the classes that the data set states are not valid", "correct the labels of dataset.json"),
    "pairing": Kind(
        "error", "images and labels do not pair up", "add the missing files, or move these to another folder"
    ),
    "row": Kind("error", "rows of the table are not valid", "correct the rows; quote paths that hold the separator"),
    "case-name": Kind(
        "error", "several files or entries have the same case name", "rename or remove all but one of each"
    ),
    "missing-file": Kind("error", "listed files do not exist", "restore the files, or remove the cases from the list"),
    "same-file": Kind(
        "error", "a file is given twice in one case", "give every channel and the label a file of its own"
    ),
    "dangling-link": Kind("error", "a link leads to nothing", "restore the file that it names, or remove the link"),
    "unreadable": Kind("error", "a file cannot be read", "export or copy the file again"),
    "file-ending": Kind(
        "error",
        "files do not have the file_ending of dataset.json",
        "convert these files or move them to another folder, or correct file_ending in dataset.json",
    ),
    "channels": Kind(
        "error",
        "a case has other channels than the data set",
        "give every case the same channels, numbered _0000, _0001 ... without a hole",
    ),
    "dimensions": Kind(
        "error", "a file holds several volumes where one is expected", "extract the volume, or declare the channels"
    ),
    "channel-grid": Kind(
        "error",
        "the channels of a case lie on different grids",
        "volseg convert and volseg predict resample them to the first with --resample-channels",
    ),
    "grid": Kind(
        "error",
        "image and label lie on different grids",
        "export both again on one grid; if only the label's header is wrong, --accept-header-of image "
        "(data.accept_header_of=image in training)",
    ),
    "voxel-size": Kind(
        "error",
        "the voxels of a case are of another order of magnitude than those of the others",
        "correct the voxel size, or its unit, in the header of the file, or set plan.spacing_mm",
    ),
    "not-finite": Kind(
        "error", "the image holds values that are not finite", "replace them by the value of the background"
    ),
    "too-large-value": Kind(
        "error", "the image holds values that are too large for float32", "check how the image was exported"
    ),
    "constant": Kind(
        "error",
        "a channel is empty: all voxels have the same value",
        "check how the image was exported, or remove the case",
    ),
    "undeclared-value": Kind(
        "error",
        "the label holds a value that the data set does not declare",
        "correct the label file, or name the value in dataset.json",
    ),
    "negative-value": Kind(
        "error",
        "the label holds a negative value",
        "renumber the labels, or export them in an unsigned type (in int8, 200 becomes -56)",
    ),
    "label-not-integer": Kind(
        "error",
        "the label holds values that are not integers",
        "export labels without interpolation, as an integer type",
    ),
    "label-is-image": Kind(
        "error",
        "the label holds values in a continuous range: it is an image, or a map of probabilities",
        "check that images and labels are not swapped; make a label map of probabilities by a threshold",
    ),
    "label-too-large": Kind("error", "the label holds a value that is too large", "renumber the labels"),
    "no-foreground": Kind(
        "error", "no label holds a foreground voxel", "check the label files and the labels of dataset.json"
    ),
    "conflicting-labels": Kind(
        "error", "cases have the same image and different labels", "keep the case whose label is right"
    ),
    "train-and-test": Kind(
        "error", "an image is both in the training and in the test set", "remove it from one of the two"
    ),
    "image-copies-label": Kind(
        "error",
        "a channel of the image is a copy of a label: the network would learn to copy the answer",
        "put the scan in its place, or remove the channel",
    ),
    "duplicate": Kind(
        "warning",
        "cases have the same image",
        "keep one of them: copies in training and validation make scores too good",
    ),
    "copied-channel": Kind(
        "warning",
        "a channel is a copy of another channel, or of one of another case",
        "check how the files were copied or exported",
    ),
    "patient-in-splits": Kind(
        "warning",
        "a patient is in several splits of the data set",
        "give all cases of a patient the same fold, or move them to one side",
    ),
    "shared-label": Kind(
        "warning",
        "several images have the same label",
        "correct the files or the list; for registered scans of one patient, state the patient: it stays in one fold",
    ),
    "list-not-used": Kind(
        "warning",
        "the list of cases in dataset.json is not used: none of its files exists",
        "correct the paths of the list, or remove it",
    ),
    "not-read": Kind(
        "warning", "a name is not known, and is almost one that is read", "correct the name, or ignore this"
    ),
    "channel-names": Kind(
        "warning",
        "the channels that dataset.json states are doubtful",
        "correct channel_names or modality in dataset.json",
    ),
    "unlabelled": Kind("warning", "scans without a label are left out", "add their labels, or ignore this"),
    "no-image": Kind("warning", "labels without a scan are left out", "add their scans, or ignore this"),
    "test-scan": Kind("warning", "a scan of the test set cannot be used", "export it again, or remove it"),
    "passed-over": Kind(
        "warning", "files and folders among the scans are not read", "convert them, or move them to another folder"
    ),
    "similar-names": Kind(
        "warning",
        "names of cases differ only in capitals",
        "rename them: on Windows and macOS their masks would replace each other",
    ),
    "grid-tolerance": Kind(
        "warning",
        "grids differ within the tolerance; the voxels are taken as those of the image",
        "export both again on one grid, or lower data.grid_tolerance_mm",
    ),
    "label-header": Kind(
        "warning",
        "the grid in the header of the label is replaced by that of the image, as requested",
        "look at some of these cases with a viewer",
    ),
    "shear": Kind(
        "warning",
        "the axes of the image are not at right angles",
        "check the affine; scans of a tilted gantry are processed on their own grid, without correction",
    ),
    "no-geometry": Kind(
        "warning",
        "voxel size and directions were probably lost: the header states the default of 1 x 1 x 1 mm",
        "write the right affine into the header; training assumes that 1 mm is true",
    ),
    "slice-gap": Kind(
        "warning",
        "slices may be missing: their distance is a multiple of what the header states",
        "compare the number of slices with the archive; ignore this if the scan has gaps",
    ),
    "unused-bits": Kind(
        "warning",
        "pixels hold something above the bits that BitsStored states; it is ignored, as by ITK",
        "compare the values with a viewer; if large values are wrong, correct BitsStored and HighBit",
    ),
    "no-directions": Kind(
        "warning",
        "the header does not state the directions of the axes",
        "look at the scan with a viewer, and write the directions into the header: the mask may be mirrored otherwise",
    ),
    "header-field": Kind(
        "warning",
        "a field of the header is invalid, and was corrected",
        "write a valid value into the header; check voxel size and directions with a viewer",
    ),
    "label-scattered": Kind(
        "warning",
        "the label holds many values that are scattered among others: was it interpolated, or stored as JPEG?",
        "export labels without interpolation, in a format without loss; look at them with a viewer",
    ),
    "background-name": Kind(
        "warning",
        "the value 0 is named as a class, but it is the background: it is neither trained nor scored",
        'give the class another value in the label files, and name 0 "background"',
    ),
    "empty-label": Kind(
        "warning", "a label holds only background", "check that the structure is really absent in these cases"
    ),
    "absent-class": Kind(
        "warning", "a declared class is in no case", "check the values in the label files, or remove the class"
    ),
    "rare-class": Kind(
        "warning", "a class is in very few cases", "check that the value is meant; so few cases teach nothing"
    ),
    "few-voxels": Kind(
        "warning",
        "a class has a few voxels only, in one case or in all",
        "check for stray voxels of a wrong value",
    ),
    "class-outlier": Kind(
        "warning",
        "the sizes or places of the classes are unlike those of the other cases",
        "look at the label with a viewer: it may be inverted or filled, or two values may be swapped",
    ),
    "lost-by-cropping": Kind(
        "warning",
        "cropping to the nonzero voxels takes labels away",
        "check these cases, or set plan.crop_nonzero=false",
    ),
    "lost-by-resampling": Kind(
        "warning",
        "resampling may remove labels that are thinner than half a voxel",
        "check these cases, or set a finer plan.spacing_mm",
    ),
    "spacing-outlier": Kind(
        "warning", "the voxel size is far from that of the other cases", "check the voxel size in the header"
    ),
    "size-outlier": Kind(
        "warning",
        "the field of view is far from that of the other cases",
        "check the voxel size in the header, and that the scan is complete",
    ),
    "intensity-outlier": Kind(
        "warning", "the range of values is far from that of the other cases", "check how the image was exported"
    ),
    "not-hounsfield": Kind(
        "warning",
        "the channel is called CT, but its values are not Hounsfield units",
        "subtract the offset (often 1024) or undo the scaling, or name the channel otherwise in dataset.json",
    ),
    "modality": Kind(
        "warning", "the values do not look like the modality of the channel", 'state "modality" in dataset.json'
    ),
    "unit": Kind(
        "note",
        "the header states lengths in another unit than mm, which were converted",
        "check the voxel size: some programs ignore this field (ITK applies it in NIfTI, and ignores it in NRRD)",
    ),
    "padding": Kind(
        "note",
        "padding outside of the image (PixelPaddingValue) had values of tissue, and was set to the lowest ones",
        "nothing to do",
    ),
    "voxel-order": Kind("note", "labels store the voxels of their image in another order", "nothing to do"),
    "orientation-outlier": Kind(
        "note", "the axes of the file run in other directions than those of the other cases", "look at it with a viewer"
    ),
}
"""The kinds of findings by severity; `docs/datasets.md` holds the same table."""


@dataclass(frozen=True)
class Finding:
    """Something about a data set that is wrong, doubtful or worth knowing.

    Attributes:
        kind: A key of :data:`KINDS`.
        files: The files concerned, at least one.
        message: What was found in these files, and what was expected.
        own_hint: How to fix it, where this is more exact than the hint of its kind.
    """

    kind: str
    files: tuple[Path, ...]
    message: str
    own_hint: str | None = None

    @property
    def severity(self) -> str:
        """``error``, ``warning`` or ``note``."""
        return KINDS[self.kind].severity

    @property
    def hint(self) -> str:
        """How to fix it."""
        return self.own_hint or KINDS[self.kind].hint

    @classmethod
    def of_error(cls, error: VolsegError, file: Path, kind: str = "unreadable") -> Finding:
        """Return an error as a finding.

        Args:
            error: The error.
            file: Its file, where the error names none.
            kind: Its kind, where the error has none.
        """
        own, parts = error.kind or kind, [error.problem]
        parts += [f"found: {error.found}"] if error.found is not None else []
        parts += [f"expected: {error.expected}"] if error.expected is not None else []
        if len(parts) > 1 and error.problem == KINDS[own].title:
            del parts[0]
        hint = None if error.kind else error.hint  # the table's is as exact, and names the options of planning
        return cls(own, (Path(error.file or file),), "; ".join(parts), hint)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "files": [str(file) for file in self.files],
            "message": self.message,
            "hint": self.hint,
        }


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by severity, then in the order of :data:`KINDS`, then by file."""
    kinds = list(KINDS)
    return sorted(
        findings,
        key=lambda one: (SEVERITIES.index(one.severity), kinds.index(one.kind), [str(file) for file in one.files]),
    )


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that stop training."""
    return [finding for finding in findings if finding.severity == "error"]


def report(findings: Iterable[Finding], shown: int = SHOWN) -> str:
    """Return findings as text, grouped by kind: the first files of each kind, how many there are, and the hints.

    Args:
        findings: In any order.
        shown: Most findings of a kind that are listed; the others are counted.
    """
    groups: dict[str, list[Finding]] = {}
    for finding in in_order(findings):
        groups.setdefault(finding.kind, []).append(finding)
    return "\n".join(_group_text(kind, group, shown) for kind, group in groups.items())


def _group_text(kind: str, group: Sequence[Finding], shown: int) -> str:
    lines = [f"{KINDS[kind].severity}: {KINDS[kind].title} ({kind}, {len(group)} found)"]
    for finding in group[:shown]:
        more = f" and {len(finding.files) - shown} more" if len(finding.files) > shown else ""
        lines.append(f"  {', '.join(map(str, finding.files[:shown]))}{more}: {finding.message}")
    if len(group) > shown:
        lines.append(f"  and {len(group) - shown} more")
    lines += [f"  hint: {hint}" for hint in dict.fromkeys(finding.hint for finding in group[:shown])]
    return "\n".join(lines)


def counts(findings: Sequence[Finding]) -> str:
    """Return how many errors, warnings and notes there are."""
    numbers = {severity: sum(one.severity == severity for one in findings) for severity in SEVERITIES}
    return ", ".join(counted(number, severity) for severity, number in numbers.items())


def refuse_errors(findings: Iterable[Finding], root: Path) -> None:
    """Raise one DataError that lists all errors among some findings, if there are any.

    Raises:
        DataError: There are errors.
    """
    errors = errors_of(findings)
    if errors:
        count = f"{len(errors)} errors" if len(errors) > 1 else "an error"
        raise DataError(f"the data set {root} has {count}:\n{report(errors)}")
