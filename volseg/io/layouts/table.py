"""A CSV with a row per case: the columns ``image`` and ``label``, and optionally ``id``, ``patient`` and ``fold``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from volseg.errors import DataError, counted, suggestion
from volseg.io.cases import Case, case_names, listed, refuse
from volseg.io.description import Description
from volseg.io.findings import Finding, refuse_errors
from volseg.io.layouts.found import (
    LABEL_WORDS,
    MASK_WORDS,
    WORDS,
    Found,
    channel_order,
    missing_files,
    modality_name,
    repeated_names,
    without,
)
from volseg.io.paths import is_file, listed_path
from volseg.io.rows import FOLD, read_rows
from volseg.io.volumes import has_volume_suffix, is_scan

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv")
OTHER_COLUMNS = ("label", "id", "patient", "fold")
EXPECTED = "a row of headers: image (or a column per channel), label, and optionally id, patient, fold"
SYNONYMS = {
    "patient": "patient",
    "patients": "patient",
    "patientid": "patient",
    "patientname": "patient",
    "patientnumber": "patient",
    "subject": "patient",
    "subjects": "patient",
    "subjectid": "patient",
    "participant": "patient",
    "participantid": "patient",
    "fold": "fold",
    "folds": "fold",
}
"""Headers, letters and digits alone, that mean a column; without it, a patient may be in several folds."""
PATIENT_WORDS = ("patient", "subject", "participant")
ALIKE = 0.85
"""How alike a header and one of these words are that is probably misspelt."""

Row = dict[str, str]


def find(file: Path, description: Description | None) -> Found:
    """Return the cases that a CSV lists; separated by commas, semicolons or tabs, in UTF-8.

    Columns (in any capitalisation and order):

    - ``image``: the scan, with all its channels; or ``image_0``, ``image_1`` ...; or a column per channel, named as the
      channel (``T1``, ``CT``). Columns count as channels if they hold names of scans. The channels of ``dataset.json``
      choose among these, and order them. A scan is a file, or the folder, a zip or a file of a DICOM series.
    - ``label``: the reference; empty for a scan without one.
    - ``id``: name of the case; otherwise it is named after its files.
    - ``patient``: whose scan it is; also ``patient_id``, ``subject`` or ``subject_id``. ``fold``: the fold in which it
      is held out.

    Other columns are left alone. Paths are relative to the CSV. Findings are rows that are not valid, files that do not
    exist, and names that repeat.

    Raises:
        DataError: The file is no such table.
    """
    header, rows, problems = _read(file)
    columns, channels = _channels(header, list(rows.values()), file, description)
    findings = [*_row_findings([*problems, *_problems(rows, columns)], file), *_misspelt(header, columns, file)]
    rows = {line: row for line, row in rows.items() if all(row[column] for column in columns)}
    images = [tuple(listed_path(row[column], file.parent) for column in columns) for row in rows.values()]
    cases = [
        Case(
            row.get("id") or name,
            paths,
            listed_path(row["label"], file.parent) if row["label"] else None,
            row.get("patient") or None,
            _fold(row.get("fold", "")),
        )
        for row, name, paths in zip(rows.values(), case_names(images) if images else (), images, strict=True)
    ]
    findings += missing_files(cases)
    findings += repeated_names(cases, [f"row {line}" for line in rows])
    cases = list(without(cases, findings))
    labelled = tuple(case for case in cases if case.label is not None)
    unlabelled = tuple(case for case in cases if case.label is None)
    return Found(labelled, unlabelled, channels, findings=tuple(findings))


def _row_findings(problems: Iterable[tuple[int, str]], file: Path) -> list[Finding]:
    return [Finding("row", (file,), f"row {line}: {text}") for line, text in sorted(problems)]


def _read(file: Path) -> tuple[list[str], dict[int, Row], list[tuple[int, str]]]:
    """Return the headers, the rows of their length by number, and the numbers of the others with what is wrong."""
    lines = read_rows(file)
    header = _columns(lines[0]) if lines else []
    if "label" not in header or len(lines) < 2:
        found = ", ".join(header)[:200] or "an empty file"
        masks = [name for name in header if name.lower() in LABEL_WORDS] if "label" not in header else []
        hint = f"call the column {masks[0]} label" if masks else None
        problem = "the table has no rows of images and labels"
        raise DataError(problem, file=file, found=found, expected=EXPECTED, hint=hint)
    refuse("headers that stand twice", file, sorted({name for name in header if name and header.count(name) > 1}))
    numbered = dict(enumerate(lines[1:], start=2))
    uneven = {number: line for number, line in numbered.items() if len(line) != len(header)}
    problems = [
        (number, f"{counted(len(line), 'column')}; the headers have {len(header)}") for number, line in uneven.items()
    ]
    if len(uneven) == len(numbered):
        refuse_errors(_row_findings(problems, file), file)
    return (
        header,
        {n: dict(zip(header, line, strict=True)) for n, line in numbered.items() if n not in uneven},
        problems,
    )


def _columns(names: Sequence[str]) -> list[str]:
    """Return the headers; those with a meaning in the word for it, which goes to the first of several synonyms."""
    header = [_column(name) for name in names]
    for position, name in enumerate(header):
        meaning = SYNONYMS.get(_letters(name))
        if meaning is not None and meaning not in header:
            header[position] = meaning
    return header


def _column(name: str) -> str:
    """Return a header; in lower case if it is a word with a meaning."""
    lower = name.lower()
    return lower if lower in OTHER_COLUMNS or lower.startswith("image") else name


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _misspelt(header: Sequence[str], columns: Sequence[str], file: Path) -> Iterator[Finding]:
    """Yield the columns that are not read, and are called almost like that of the patients."""
    for name in header:
        meant = suggestion(_letters(name), PATIENT_WORDS, ALIKE)
        if meant is not None and meant[0] == _letters(name)[0] and "patient" not in header and name not in columns:
            yield Finding("not-read", (file,), f'the column "{name}"; did you mean "patient"?')


def _problems(rows: Mapping[int, Row], columns: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the number of each row without all its images, or with an invalid fold, and what is wrong with it."""
    for line, row in rows.items():
        empty = [column for column in columns if not row[column]]
        if empty:
            yield line, f"no file in {', '.join(empty)}"
        fold = row.get("fold", "")
        if fold and not FOLD.fullmatch(fold):
            yield line, f'the fold "{fold[:50]}" is not a whole number from 0 on, or nothing'


def _fold(text: str) -> int | None:
    match = FOLD.fullmatch(text)
    return int(match[1]) if match else None


def _channels(
    header: Sequence[str], rows: Sequence[Mapping[str, str]], file: Path, description: Description | None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return the columns of images, and the names of the channels if the columns state them."""
    stated = description.channels if description is not None else None
    if "image" in header:
        _refuse_others(["image"], header, rows, file)
        return ("image",), None
    numbered = sorted((name for name in header if name.startswith("image_") and name[6:].isdecimal()), key=_number)
    if numbered:
        if [_number(name) for name in numbered] != list(range(len(numbered))):
            expected = "image_0, image_1 ... without a hole"
            raise DataError("columns of images are missing", file=file, found=", ".join(numbered), expected=expected)
        _refuse_others(numbered, header, rows, file)
        return tuple(numbered), None
    candidates = [name for name in header if name not in OTHER_COLUMNS]
    named = [name for name in candidates if any(_names_scan(row[name], file) for row in rows)]
    if not named:
        raise DataError("the table has no column of images", file=file, found=", ".join(header), expected=EXPECTED)
    order, source = channel_order(named, stated, file)
    logger.info("%s: channels %s (order: %s)", file, listed(order), source)
    return order, tuple(map(modality_name, order)) if stated is None else None


def _refuse_others(
    columns: Sequence[str], header: Sequence[str], rows: Sequence[Mapping[str, str]], file: Path
) -> None:
    """Refuse files of scans in other columns beside ``image``: they may be channels; those of masks are left alone."""
    candidates = [name for name in header if name not in (*OTHER_COLUMNS, *columns)]
    candidates = [name for name in candidates if not any(word.lower() in MASK_WORDS for word in WORDS.findall(name))]
    others = [name for name in candidates if any(_is_scan_file(row[name], file) for row in rows)]
    if others:
        raise DataError(
            "columns beside the image hold scans, too",
            file=file,
            found=f"{listed(others)} beside {listed(columns)}",
            expected="either image with all channels, or a column per channel",
            hint="name every column as its channel, such as T1 and T2, or remove those that are no channels",
        )


def _is_scan_file(text: str, file: Path) -> bool:
    return has_volume_suffix(text) and is_file(listed_path(text, file.parent))


def _names_scan(text: str, file: Path) -> bool:
    return bool(text) and (has_volume_suffix(text) or is_scan(listed_path(text, file.parent)))


def _number(name: str) -> int:
    return int(name.removeprefix("image_"))
