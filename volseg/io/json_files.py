"""JSON files: read with errors that name the file, written atomically in a form that people can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError, VolsegError
from volseg.io.atomic import atomic_file

LINE_LENGTH = 100


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
    """Write :func:`to_json` of ``value`` atomically.

    Raises:
        OutputError: The folder cannot be written to.
    """
    with atomic_file(path) as file:
        file.write((to_json(value) + "\n").encode())


def read_json(path: str | Path, what: str, kind: type[VolsegError] = ConfigError) -> Any:
    """Read a JSON file; a byte-order mark at its start is skipped.

    Args:
        path: File.
        what: What the file is, for the message ("plan", "split").
        kind: Error to raise.

    Raises:
        VolsegError: Of the given kind: the file is missing, not UTF-8 or not JSON, or it has a key twice.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise kind(f"the {what} file cannot be read", file=path, found=error) from error
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise kind(f"the {what} file is not JSON", file=path, found=error) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; json would keep the last of several values under one key without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return content
