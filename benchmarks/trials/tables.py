"""The table of all trials, from their records."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from shared.record import Record, load
from shared.text import minutes_text, table

PARTS = ("kill-train", "kill-predict", "bitflips", "full-disk", "two-at-once")
EXPLANATION = """\
`kill-*`: SIGKILL at random moments, started again until finished; a trial is a kill. `bitflips`: one bit of a
checkpoint, a cached array or stored tokens; *refused*, *notice* (the checkpoint before is used, with a warning),
*mended* (made anew) or *unnoticed*. `full-disk`: a tmpfs that fills up, then gets space. `two-at-once`: processes in
one folder. [Reliability](../../../docs/reliability.md) says what is promised.
"""
FUZZ = """\
Damaged files given to the functions that read them; *refused* is an error that names the file, *other* any other
exception, a process that dies, more than 10 s or more than 256 MiB. The mutant of unknown kind before died of an error
of the trial itself. [Reliability](../../../docs/reliability.md) says what is promised.
"""


def write_tables(folder: Path) -> str:
    """Return the page of a folder's records."""
    records = {(record["settings"]["name"], record["part"]): record for record in load(folder)}
    names = sorted({name for name, _ in records})  # "before" comes before "now"
    text = f"# Faults\n\n{overview(records, names)}\n\n{EXPLANATION}"
    for name in names:
        parts = [records[name, part] for part in PARTS if (name, part) in records]
        text += f"\n## {name.capitalize()}\n" + "".join(section(record) for record in parts)
    return text


def write_mutants(folder: Path) -> str:
    """Return the page of the damaged files."""
    text = f"# Damaged files\n\n{FUZZ}"
    for record in sorted(load(folder), key=lambda record: str(record["settings"]["name"])):
        text += section(record, f"## {record['settings']['name'].capitalize()}")
    return text


def overview(records: dict[tuple[str, str], Record], names: list[str]) -> str:
    """Return one row per part with failed and all trials under each name."""
    rows = [["part", *(f"{name}: failed of trials" for name in names)]]
    for part in PARTS:
        cells = [records[name, part]["result"] if (name, part) in records else None for name in names]
        rows.append([part, *("" if cell is None else f"{cell['failed']:,} of {cell['trials']:,}" for cell in cells)])
    return table(rows)


def section(record: Record, title: str | None = None) -> str:
    """Return the counts of one part and what failed."""
    result, settings = record["result"], record["settings"]
    text = f"\n{title or '### ' + record['part']}\n\n{counts(result)}\n\n"
    for kind, one in result.get("others by kind", {}).items():
        text += f"- {one['mutants']} x {plain(kind)} (seeds {', '.join(map(str, one['seeds'][:3]))})\n"
    if "others by kind" not in result:
        problems = Counter(plain(problem) for problem in result.get("problems", []))
        text += "".join(f"- {number} x {problem}\n" for problem, number in list(problems.items())[:6])
    hardware, commit = record["hardware"]["cpu"], (settings["measured commit"] or "unknown")[:10]
    origin = f"{record['date'][:10]}, {hardware}, commit {commit}, {minutes_text(record['seconds'])}"
    return f"{text.rstrip()}\n\n{origin}: `{' '.join(record['command'])}`\n"


def counts(result: dict[str, Any]) -> str:
    """Return the figures of a part: a row per kind, or one row."""
    if "kinds" not in result:
        figures = {key: value for key, value in result.items() if key != "problems"}
        phases = figures.pop("kills by phase")
        rows = [list(figures), [str(value) for value in figures.values()]]
        return f"{table(rows)}\n\nKills by phase: {', '.join(f'{name} {n}' for name, n in phases.items())}."
    kinds = result["kinds"]
    columns = list(
        dict.fromkeys(key for one in kinds.values() for key in one if not isinstance(one[key], (list, dict)))
    )
    rows = [["", *columns], *([kind, *(f"{one.get(key, 0):,}" for key in columns)] for kind, one in kinds.items())]
    return table(rows)


def plain(text: str) -> str:
    """Return a text on one line, without temporary folders and what Markdown or HTML would take for markup."""
    short = textwrap.shorten(re.sub(r"\S*/(?:faults|fuzz)_\w+/|\brun_\d+: ", "", text), 160, placeholder=" ...")
    return short.translate(str.maketrans("|<>[]`", "/()()'"))
