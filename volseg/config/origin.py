"""Where a setting was given: the command line, or a line of a configuration file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import yaml
from yaml import YAMLError

from volseg.config.packaged import config_file
from volseg.errors import ConfigError, Error

COMMAND_LINE = "command line"
_KEY = re.compile(r"(\w+(?:\.\w+)+)|^(\w+)|'(\w+)'|(\w+)=")
"""Settings that a message names: ``train.lr`` anywhere; ``seed`` at the beginning, in quotes, or as ``seed=-1``."""


def with_origin(error: Error, source: object, overrides: Sequence[str] = ()) -> Error:
    """Return an error of a setting with the place where the setting was given, if it names no file yet.

    Args:
        error: Any error; one that names no setting that was given is returned as it is.
        source: YAML file or name of a configuration; anything else has no lines.
        overrides: ``key=value`` strings, which come first.
    """
    if not isinstance(error, ConfigError) or error.file is not None:
        return error
    texts = (error.problem, error.found or "")
    keys = [next(filter(None, groups)) for text in texts for groups in _KEY.findall(text)]
    given = {item.partition("=")[0] for item in overrides}
    if any(name == key or key.startswith(f"{name}.") or name.startswith(f"{key}.") for key in keys for name in given):
        return error.in_file(COMMAND_LINE)
    if not isinstance(source, str | Path) or source == COMMAND_LINE:
        return error
    with suppress(ConfigError):  # there is no such configuration, which is the error then
        file = config_file(source)
        lines = key_lines(file)
        line = next((lines[key] for key in keys if key in lines), None)
        return error if line is None else error.in_file(f"{file}, line {line}")
    return error


def key_lines(file: Path) -> dict[str, int]:
    """Return the line, from 1, of each key of a YAML file, such as ``train.lr``; none if it cannot be read."""
    with suppress(OSError, ValueError, YAMLError, RecursionError):
        root = yaml.compose(file.read_bytes().decode("utf-8-sig"))
        return dict(_lines(root, ""))
    return {}


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{getattr(key, 'value', '')}"
            yield name, key.start_mark.line + 1
            yield from _lines(value, f"{name}.")
