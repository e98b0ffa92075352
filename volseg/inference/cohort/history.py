"""The file ``records.jsonl`` of a prediction folder: a line before and after the files of a case are written."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volseg.errors import counted
from volseg.io.atomic import atomic_file, free_name

logger = logging.getLogger(__name__)

WRITING = "writing"
"""Status of a line that precedes the files of a case; if no line follows it, the case is unfinished."""
STATUSES = (WRITING, "done", "failed")


@dataclass
class History:
    """What a record file says of each case.

    Attributes:
        finished: Its last record with the status ``done``.
        unfinished: The line about files that were going to be written, if no such record follows it.
        outputs: Every (name, hash) that was recorded; the hash is ``None`` for large files.
    """

    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    unfinished: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, set[tuple[str, str | None]]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Add a line of the file; a failed case changes nothing."""
        case = line["case"]
        if line["status"] == "done":
            self.finished[case] = line
            self.unfinished.pop(case, None)
            self.outputs.setdefault(case, set()).update(line["outputs"].items())
        elif line["status"] == WRITING:
            self.unfinished[case] = line

    def has_output(self, case: str, name: str, sha256: str) -> bool:
        """Return whether volseg wrote this output of a case with this content, or was killed while it did."""
        recorded = self.outputs.get(case, set())
        begun = self.unfinished.get(case, {}).get("outputs", {})
        return (name, sha256) in recorded or (name, None) in recorded or name in begun


def read_history(path: Path) -> History:
    """Read a record file, without damaged lines; it may be missing."""
    history = History()
    for line in _lines(path):
        history.add(_parse(line) or {})
    return history


def repair(path: Path) -> None:
    """Make a record file ready for more lines: only valid lines, each with its end.

    A killed process can leave an incomplete last line, which is removed. If other lines are damaged, the file is kept
    under another name.

    Raises:
        OutputError: The file cannot be written.
    """
    content = path.read_bytes() if path.is_file() else b""
    valid = b"".join(line + b"\n" for line in _lines(path))
    if content == valid:
        return
    damaged = sum(_parse(line) is None for line in content.split(b"\n")[:-1])
    if damaged:
        kept = free_name(path)
        shutil.copy2(path, kept)
        logger.warning("%s: left out: %s; the file is kept as %s", path, counted(damaged, "damaged line"), kept.name)
    with atomic_file(path) as file:
        file.write(valid)


def append_line(path: Path, line: bytes) -> None:
    """Append a line with its end and wait until it is on the disk.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> list[bytes]:
    """Return the valid lines of a record file."""
    content = path.read_bytes() if path.is_file() else b""
    return [line for line in content.split(b"\n") if _parse(line) is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a valid line of a record file."""
    try:
        record = json.loads(line)
        outputs = record["outputs"].items()
        valid = isinstance(record["case"], str) and record["status"] in STATUSES
        valid = valid and all(isinstance(sha256, str | None) for _, sha256 in outputs)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if valid else None
