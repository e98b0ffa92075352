"""JSON that people read: keys in order, short lists and mappings on one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError
from volseg.io.atomic import atomic_file

LINE_LENGTH = 100


def to_json(value: Any, indent: int = 0) -> str:
    """Formats ``value`` so that whatever fits on a line stays on one.

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
    """Writes :func:`to_json` of ``value`` atomically: the file is whole or as it was before.

    Raises:
        OutputError: The folder cannot be written to.
    """
    with atomic_file(path) as file:
        file.write((to_json(value) + "\n").encode())


def read_json(path: str | Path, what: str) -> Any:
    """Reads a JSON file.

    Args:
        path: File.
        what: What the file is, for the message ("plan", "splits").

    Raises:
        ConfigError: The file is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the {what} file cannot be read", file=path, found=error) from error
    except ValueError as error:
        raise ConfigError(f"the {what} file is not JSON", file=path, found=error) from error
