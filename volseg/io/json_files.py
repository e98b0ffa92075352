"""JSON files: read with errors that name the file, written atomically in a form that people can read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError, VolsegError
from volseg.io.atomic import atomic_file
from volseg.io.paths import exists, is_file

LINE_LENGTH = 100
DEEPEST = 64
"""Most levels of nested lists and mappings."""
FOUND_LENGTH = 200


def to_json(value: Any, indent: int = 0) -> str:
    """Format a value so that short lists and mappings stay on one line.

    Args:
        value: Anything ``json.dumps`` takes; the outermost mapping is always spread over lines.
        indent: Columns by which the text is already indented.

    Returns:
        JSON text without a final newline; floats are written so that they are read back exactly.
    """
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    outermost_mapping = indent == 0 and isinstance(value, dict)
    if not isinstance(value, (dict, list, tuple)) or not value:
        return flat
    if len(flat) + indent <= LINE_LENGTH and not outermost_mapping:
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        rows = [f"{json.dumps(str(k), ensure_ascii=False)}: {to_json(v, indent + 2)}" for k, v in value.items()]
    else:
        rows = [to_json(item, indent + 2) for item in value]
    first, last = ("{", "}") if isinstance(value, dict) else ("[", "]")
    return f"{first}\n{inner}" + f",\n{inner}".join(rows) + f"\n{' ' * indent}{last}"


def write_json(path: str | Path, value: Any) -> None:
    """Write :func:`to_json` of ``value`` atomically; parts of file names that are not UTF-8 are escaped.

    Raises:
        OutputError: The folder cannot be written to.
    """
    with atomic_file(path) as file:
        file.write(encoded(to_json(value) + "\n"))


def encoded(text: str) -> bytes:
    """Return text as UTF-8. Bytes of a file name that are not UTF-8 become ``\\udcXX``, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def read_json(path: str | Path, what: str, kind: type[VolsegError] = ConfigError) -> Any:
    """Read a JSON file.

    Args:
        path: File.
        what: What the file is, for the message ("plan", "split").
        kind: Error to raise.

    Raises:
        VolsegError: Of the given kind: the file cannot be read, or :func:`parse_json` refuses its content.
    """
    path = Path(path)
    if exists(path) and not is_file(path):
        raise kind(f"the {what} file is not a regular file", file=path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        found = error.strerror or error if isinstance(error, OSError) else error
        raise kind(f"the {what} file cannot be read", file=path, found=found, hint="check the path") from error
    return parse_json(content, what, path, kind)


def parse_json(content: bytes | str, what: str, file: Path, kind: type[VolsegError] = ConfigError) -> Any:
    """Return the value of a JSON text; a byte-order mark at its start is skipped.

    Args:
        content: The text.
        what: What it is, for the message ("plan", "split").
        file: Where it comes from, for the message.
        kind: Error to raise.

    Raises:
        VolsegError: Of the given kind: the text is not UTF-8 or not JSON, has a key twice, a number that is not finite
            or does not fit 64 bits, or is nested more than 64 levels deep.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
        check_depth(value)
    except (ValueError, RecursionError) as error:
        found, hint = str(error)[:FOUND_LENGTH], "correct or restore the file"
        raise kind(f"the {what} file is not valid JSON", file=file, found=found, hint=hint) from error
    return value


def check_depth(value: Any) -> None:
    """Check how deep lists and mappings are nested, without recursion.

    Raises:
        ValueError: More than 64 levels.
    """
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [
            list(item.values()) if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
        ]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST} levels deep")


def _integer(text: str) -> int:
    if len(text) > len(str(-(2**63))) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the whole number {text[:20]}... does not fit 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; json would keep the last of several values under one key without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return content
