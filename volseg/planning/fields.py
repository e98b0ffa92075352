"""Readers of plan fields from plain JSON or YAML values; a wrong type is a ConfigError that names the key."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from volseg.errors import ConfigError, suggestion

Item = TypeVar("Item")
LARGEST = sys.float_info.max
FOUND_LENGTH = 80


def check_keys(given: Collection[str], known: Collection[str], where: str) -> None:
    """Raise a ConfigError for an unknown key and suggest a similar one."""
    for key in given:
        if key not in known:
            similar = suggestion(key, known)
            raise ConfigError(
                f"{where}.{key} is not known",
                expected=", ".join(known),
                hint=f"did you mean {where}.{similar}?" if similar else None,
            )


def integer(key: str, value: Any) -> int:
    """Read a whole number that fits 64 bits (2 or 2.0, not True)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 != 0:  # nan for inf and nan
        raise ConfigError(f"{key} is not a whole number", found=repr(value))
    if not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key} is too large", expected="a whole number of 64 bits")
    return int(value)


def number(key: str, value: Any) -> float:
    """Read a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise ConfigError(f"{key} is not a finite number", found=repr(value)[:FOUND_LENGTH])
    return float(value)


def boolean(key: str, value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is not true or false", found=repr(value))
    return value


def text(key: str, value: Any) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise ConfigError(f"{key} is not text", found=repr(value))
    return value


def optional(read: Callable[[str, Any], Item]) -> Callable[[str, Any], Item | None]:
    """Return a reader that also accepts ``null``."""
    return lambda key, value: None if value is None else read(key, value)


def sequence(read: Callable[[str, Any], Item], length: int | None = None) -> Callable[[str, Any], tuple[Item, ...]]:
    """Return a reader of lists, of a fixed length if ``length`` is given."""

    def read_all(key: str, value: Any) -> tuple[Item, ...]:
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            size = "" if length is None else f"of {length} values"
            raise ConfigError(f"{key} is not a list {size}".rstrip(), found=repr(value))
        return tuple(read(f"{key}[{index}]", item) for index, item in enumerate(value))

    return read_all


def mapping(read: Callable[[str, Any], Item]) -> Callable[[str, Any], dict[str, Item]]:
    """Return a reader of mappings from names to values."""

    def read_all(key: str, value: Any) -> dict[str, Item]:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is not a mapping", found=repr(value))
        return {text(f"the name in {key}", name): read(f"{key}.{name}", item) for name, item in value.items()}

    return read_all
