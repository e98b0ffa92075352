"""Labels of scans or slices in a CSV, and how it splits them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError, counted, suggestion
from volseg.io.cases import LISTED, case_name, listed
from volseg.io.layouts.table import SYNONYMS
from volseg.io.rows import FOLD, read_rows
from volseg.io.volumes import has_volume_suffix

COLUMNS = ("case", "label", "slice", "patient", "fold", "split")
EXPECTED = "a row of headers: case, label, and optionally slice, patient, and fold or split"
SPLITS = ("train", "test")
EMPTY = "fill the cells; leave out the rows, and the scans, whose label is not known"
MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "null")
"""What programs write for an unknown value, in any capitalisation."""


@dataclass(frozen=True)
class Sample:
    """A labelled scan or slice.

    Attributes:
        row: Its row in the table; 1 is that of the headers.
        case: Name of the scan.
        label: Its class.
        slice: Number of the slice in the file, from 0; ``None`` for a scan.
        patient: Whose scan it is; the name of the scan where the table does not say.
        part: Its fold, or ``train`` or ``test``; ``None`` where the table does not split.
    """

    row: int
    case: str
    label: str
    slice: int | None
    patient: str
    part: str | None


@dataclass(frozen=True)
class Labels:
    """A table of labels.

    Attributes:
        file: The table.
        samples: Its rows.
        split_by: ``fold``, ``split``, or ``None`` where the table does not split.
    """

    file: Path
    samples: tuple[Sample, ...]
    split_by: str | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, sorted, by number where all are numbers."""
        names = {sample.label for sample in self.samples}
        whole = all(re.fullmatch(r"-?\d{1,15}", name) for name in names)
        return tuple(sorted(names, key=lambda name: (int(name) if whole else 0, name)))

    @property
    def of_slices(self) -> bool:
        """Whether slices are labelled."""
        return self.samples[0].slice is not None


def read_labels(file: Path) -> Labels:
    """Read a table of labels, separated by commas, semicolons or tabs, in UTF-8.

    Columns, in any order; others are left alone: ``case`` (name of the scan, or its file name), ``label``, ``slice``
    (number in the file, from 0), ``patient`` (also ``patient_id``, ``subject`` ...), and ``fold`` (in which it is
    tested) or ``split`` (``train`` or ``test``).

    Raises:
        DataError: The file is no such table, or some rows are not valid; they are listed.
    """
    header, rows = _rows(file)
    found = [name for name in COLUMNS if name in header]
    empty = [f"row {number}: {name}" for number, row in rows.items() for name in found if not row[name]]
    expected = "a value in each cell of " + ", ".join(found)
    _refuse(file, "cells are empty", empty, expected=expected, hint=EMPTY)
    columns = [name for name in found if name in ("label", "patient")]
    unknown = [
        f"row {n}: {name} {row[name]}" for n, row in rows.items() for name in columns if row[name].lower() in MISSING
    ]
    _refuse(file, "cells say that a value is missing", unknown, expected=expected, hint=EMPTY)
    split_by = next((name for name in ("fold", "split") if name in header), None)
    _check_cells(file, rows)
    samples = [
        Sample(
            row=number,
            case=_name(row["case"]),
            label=row["label"],
            slice=int(row["slice"]) if "slice" in row else None,
            patient=row.get("patient") or _name(row["case"]),
            part=None if split_by is None else _part(row[split_by]),
        )
        for number, row in rows.items()
    ]
    labels = Labels(file, tuple(samples), split_by)
    _check_spellings(file, "classes", [sample.label for sample in samples])
    _check_spellings(file, "patients", [row["patient"] for row in rows.values() if "patient" in row])
    _check_samples(labels)
    return labels


def _rows(file: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """Return the headers, and the rows by number."""
    lines = read_rows(file)
    header = [_column(name) for name in lines[0]] if lines else []
    missing = [name for name in ("case", "label") if name not in header]
    if missing or len(lines) < 2:
        similar = {name: suggestion(name, header) for name in missing}
        hints = [f"call the column {have} {name}" for name, have in similar.items() if have]
        found = ", ".join(header)[:200] or "an empty file"
        found = found if missing else f"{found}, and no row below"
        problem = "the table has no labels"
        raise DataError(problem, file=file, found=found, expected=EXPECTED, hint="; ".join(hints) or None)
    twice = [name for name, count in Counter(header).items() if count > 1 and name in COLUMNS]
    _refuse(file, "columns stand twice", twice, hint="remove all but one of each")
    if "fold" in header and "split" in header:
        raise DataError("the table splits twice", file=file, found="fold and split", expected="one of them")
    numbered = dict(enumerate(lines[1:], start=2))
    uneven = [
        f"row {number}: {counted(len(line), 'column')}" for number, line in numbered.items() if len(line) != len(header)
    ]
    _refuse(file, "rows have another length than the headers", uneven, expected=counted(len(header), "column"))
    return header, {number: dict(zip(header, line, strict=True)) for number, line in numbered.items()}


def _column(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return SYNONYMS.get(letters, letters if letters in COLUMNS else name)


def _name(text: str) -> str:
    return case_name(text) if has_volume_suffix(text) else text


def _part(text: str) -> str:
    fold = FOLD.fullmatch(text)
    return str(int(fold[1])) if fold else text.lower()


def _check_cells(file: Path, rows: dict[int, dict[str, str]]) -> None:
    """Check slices, folds and splits."""
    rules: dict[str, tuple[Callable[[str], object], str]] = {
        "slice": (lambda text: re.fullmatch(r"\d{1,9}", text), "whole numbers from 0 on"),
        "fold": (FOLD.fullmatch, "whole numbers from 0 on"),
        "split": (lambda text: text.lower() in SPLITS, "train or test"),
    }
    for name, (is_valid, expected) in rules.items():
        wrong = [f"row {n}: {row[name]}" for n, row in rows.items() if name in row and not is_valid(row[name])]
        _refuse(file, f"cells of the column {name} are not valid", wrong, expected=expected)


def _check_spellings(file: Path, what: str, names: Iterable[str]) -> None:
    """Check that no name stands in several spellings: capitals, or zeros of a number, which programs add and remove."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        number = re.fullmatch(r"0*([0-9]+)(\.0*)?", name)
        spellings[number[1] if number else name.casefold()].append(name)
    several = [", ".join(same) for same in spellings.values() if len(same) > 1]
    hint = "write each in one way, or give different names to what differs"
    _refuse(file, f"{what} are spelt in several ways", several, expected="one spelling of each", hint=hint)


def _check_samples(labels: Labels) -> None:
    """Check that no row repeats, that a scan has one patient and a patient is in one part, and that classes differ."""
    file, samples = labels.file, labels.samples
    rows: dict[tuple[str, int | None], list[Sample]] = defaultdict(list)
    patients: dict[str, dict[str, int]] = defaultdict(dict)
    parts: dict[str, dict[str | None, int]] = defaultdict(dict)
    for sample in samples:
        rows[sample.case, sample.slice].append(sample)
        patients[sample.case].setdefault(sample.patient, sample.row)
        parts[sample.patient].setdefault(sample.part, sample.row)
    hint = "keep one row of each; slices need a column slice"
    twice = [
        f"rows {', '.join(str(each.row) for each in same)}: {case}{'' if number is None else f', slice {number}'}"
        for (case, number), same in rows.items()
        if len(same) > 1
    ]
    _refuse(file, "rows repeat", twice, hint=hint)
    for what, groups in (("scans have several patients", patients), ("patients are in several parts", parts)):
        several = [
            f"{name}: " + ", ".join(f"{value} (row {row})" for value, row in values.items())
            for name, values in groups.items()
            if len(values) > 1
        ]
        _refuse(file, what, several, expected="one each, so that no patient is trained on and tested")
    if len(labels.classes) < 2:
        found = f"{labels.classes[0]} in {counted(len(samples), 'row')}"
        raise DataError("all labels are the same", file=file, found=found, expected="at least two classes")


def check_scans(labels: Labels, cases: Sequence[str], folder: str | Path) -> None:
    """Check that labels and scans belong together.

    Args:
        labels: The labels.
        cases: Names of the scans.
        folder: Where they are, for messages.

    Raises:
        DataError: A label has no scan, or a scan no label; all are listed.
    """
    scans, named = set(cases), {sample.case for sample in labels.samples}
    absent = [f"row {sample.row}: {sample.case}" for sample in labels.samples if sample.case not in scans]
    _refuse(
        labels.file, "labels are of scans that do not exist", absent, expected=f"the scans in {folder}: {_few(cases)}"
    )
    unlabelled = [name for name in cases if name not in named]
    hint = "add a row for each, or give the labelled scans alone: -i LIST.txt"
    _refuse(labels.file, "scans have no label", unlabelled, expected=f"a row for each scan in {folder}", hint=hint)


def _few(names: Sequence[str]) -> str:
    return listed(list(names[:3])) + (" ..." if len(names) > 3 else "")


def _refuse(
    file: Path, problem: str, invalid: Iterable[str], *, expected: str | None = None, hint: str | None = None
) -> None:
    """Raise a DataError that lists what is wrong, if anything is."""
    items = list(invalid)
    if items:
        more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
        found = "\n    ".join([f"{len(items)}:", *items[:LISTED], *more])
        raise DataError(problem, file=file, found=found, expected=expected, hint=hint)
