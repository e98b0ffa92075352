"""Rows of CSV text."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from volseg.errors import DataError

FOLD = re.compile(r"([0-9]{1,9})(\.0+)?")
"""A fold in a table; pandas writes ``0.0`` where some rows are empty."""


def read_rows(file: Path) -> list[list[str]]:
    """Return the rows that are not empty; separated by commas, semicolons or tabs, in UTF-8.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            start = stream.readline()
            stream.seek(0)
            separator = max(",;\t", key=start.count)
            rows = csv.reader(stream, delimiter=separator, strict=True)
            return [list(map(str.strip, row)) for row in rows if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError("the table cannot be read", file=file, found=error, expected="CSV text in UTF-8") from error
