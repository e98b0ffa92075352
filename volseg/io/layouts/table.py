"""A CSV with a row per case: the columns ``image`` and ``label``, and optionally ``id``, ``patient`` and ``fold``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from volseg.errors import DataError
from volseg.io.cases import Case, case_names, listed, refuse
from volseg.io.description import Description
from volseg.io.layouts.found import Found, channel_order, missing_files, modality_name, without
from volseg.io.rows import read_rows
from volseg.io.volumes import has_volume_suffix, is_scan

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv")
OTHER_COLUMNS = ("label", "id", "patient", "fold")
EXPECTED = "a row of headers: image (or a column per channel), label, and optionally id, patient, fold"

Row = dict[str, str]


def find(file: Path, description: Description | None) -> Found:
    """Return the cases that a CSV lists; separated by commas, semicolons or tabs, in UTF-8.

    Columns (in any capitalisation and order):

    - ``image``: the scan, with all its channels; or ``image_0``, ``image_1`` ...; or a column per channel, named as the
      channel (``T1``, ``CT``). Columns count as channels if they hold names of scans. The channels of ``dataset.json``
      choose among these, and order them. A scan is a file, or the folder, a zip or a file of a DICOM series.
    - ``label``: the reference; empty for a scan without one.
    - ``id``: name of the case; otherwise it is named after its files.
    - ``patient``: whose scan it is. ``fold``: the fold in which it is held out.

    Other columns are left alone. Paths are relative to the CSV. Findings are files that do not exist.

    Raises:
        DataError: The file is no such table.
    """
    header, rows = _read(file)
    columns, channels = _channels(header, rows, file, description)
    lines = range(2, len(rows) + 2)
    empty = [
        f"row {line}: {column}" for line, row in zip(lines, rows, strict=True) for column in columns if not row[column]
    ]
    refuse("rows without an image", file, empty)
    images = [tuple(file.parent / row[column] for column in columns) for row in rows]
    labels = [file.parent / row["label"] if row["label"] else None for row in rows]
    names = case_names(images)
    cases = [
        Case(row.get("id") or name, paths, label, row.get("patient") or None, _fold(row.get("fold", ""), line, file))
        for line, row, name, paths, label in zip(lines, rows, names, images, labels, strict=True)
    ]
    findings = missing_files(cases)
    cases = list(without(cases, findings))
    labelled = tuple(case for case in cases if case.label is not None)
    unlabelled = tuple(case for case in cases if case.label is None)
    return Found(labelled, unlabelled, channels, findings=tuple(findings))


def _read(file: Path) -> tuple[list[str], list[Row]]:
    """Return the headers and the rows by header."""
    lines = read_rows(file)
    header = [_column(name) for name in lines[0]] if lines else []
    if "label" not in header or len(lines) < 2:
        found = ", ".join(header)[:200] or "an empty file"
        raise DataError("the table has no rows of images and labels", file=file, found=found, expected=EXPECTED)
    refuse("headers that stand twice", file, sorted({name for name in header if name and header.count(name) > 1}))
    uneven = [f"row {n}: {len(line)}" for n, line in enumerate(lines[1:], start=2) if len(line) != len(header)]
    refuse(f"rows without exactly {len(header)} columns", file, uneven, hint="quote paths that hold the separator")
    return header, [dict(zip(header, line, strict=True)) for line in lines[1:]]


def _column(name: str) -> str:
    """Return a header; those with a meaning in lower case."""
    name = name.strip()
    lower = name.lower()
    return lower if lower in OTHER_COLUMNS or lower.startswith("image") else name


def _channels(
    header: Sequence[str], rows: Sequence[Mapping[str, str]], file: Path, description: Description | None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return the columns of images, and the names of the channels if the columns state them."""
    stated = description.channels if description is not None else None
    if "image" in header:
        return ("image",), None
    numbered = sorted((name for name in header if name.startswith("image_") and name[6:].isdecimal()), key=_number)
    if numbered:
        if [_number(name) for name in numbered] != list(range(len(numbered))):
            expected = "image_0, image_1 ... without a hole"
            raise DataError("columns of images are missing", file=file, found=", ".join(numbered), expected=expected)
        return tuple(numbered), None
    candidates = [name for name in header if name not in OTHER_COLUMNS]
    named = [name for name in candidates if any(_names_scan(row[name], file) for row in rows)]
    if not named:
        raise DataError("the table has no column of images", file=file, found=", ".join(header), expected=EXPECTED)
    order, source = channel_order(named, stated, file)
    logger.info("%s: channels %s (order: %s)", file, listed(order), source)
    return order, tuple(map(modality_name, order)) if stated is None else None


def _names_scan(text: str, file: Path) -> bool:
    return bool(text) and (has_volume_suffix(text) or is_scan(file.parent / text))


def _number(name: str) -> int:
    return int(name.removeprefix("image_"))


def _fold(text: str, line: int, file: Path) -> int | None:
    if text and not (text.isdecimal() and len(text) < 10):
        expected = "a whole number from 0 on, or nothing"
        raise DataError(f"row {line}: the fold is not a number", file=file, found=text[:50], expected=expected)
    return int(text) if text else None
