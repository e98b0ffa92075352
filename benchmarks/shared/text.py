"""Text of tables and progress."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is the header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def minutes_text(seconds: float) -> str:
    """Return a duration in seconds, or in minutes from two minutes on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as ``32 x 128 x 128``."""
    return " x ".join(map(str, shape))


def origin_text(record: dict[str, Any]) -> str:
    """Return date, processor, threads and commit of a record."""
    threads = record["threads"]
    return (
        f"{record['date'][:10]}, {record['hardware']['cpu']}, {threads} thread{'s' if threads > 1 else ''}, "
        f"commit {(record['commit'] or 'unknown')[:10]}"
    )
