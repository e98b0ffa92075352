"""Sections of ``gpu.py``: each is a process with a time limit, whose rows are kept even if it fails."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from shared.measure import run_function
from shared.record import Record

Rows = Callable[..., Iterator[Record]]
LONGEST_ERROR = 400
"""Characters of an error in a record."""


def run_section(rows: Rows, settings: Mapping[str, Any], limit_s: float) -> Record:
    """Run a section in a process of its own; return its settings, rows, seconds, and what went wrong, or ``None``.

    Args:
        rows: Function of a module that yields the rows of the section as plain values.
        settings: Its keyword arguments, plain values.
        limit_s: The process is stopped after this time.
    """
    started, error = time.perf_counter(), None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        call = {"rows": f"{rows.__module__}:{rows.__qualname__}", "path": str(path), "settings": dict(settings)}
        try:
            error = run_function(write_rows, call, limit_s=limit_s)["error"]
        except (SystemExit, TimeoutError) as failure:
            error = str(failure)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    finished = [json.loads(line) for line in lines if line.endswith("}")]
    seconds = round(time.perf_counter() - started, 1)
    return {"settings": dict(settings), "rows": finished, "error": error, "seconds": seconds}


def write_rows(rows: str, path: str, settings: Mapping[str, Any]) -> Record:
    """Write the rows of a section to a file as they come; return the error that ended it, or ``None``."""
    with Path(path).open("a", encoding="utf-8") as file:
        try:
            for row in resolve_name(rows)(**settings):
                print(row, file=sys.stderr, flush=True)
                print(json.dumps(row), file=file, flush=True)
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"[:LONGEST_ERROR]}
    return {"error": None}
