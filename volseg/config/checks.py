"""Checks that the settings share."""

from __future__ import annotations

import sys

from volseg.errors import ConfigError


def one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    """Check that a setting has one of some values.

    Raises:
        ConfigError: It has another one.
    """
    if value not in allowed:
        raise ConfigError(
            f"{key} has no such choice", found=value, expected=", ".join(map(str, allowed)), hint=f"set {key}=..."
        )


def positive(key: str, value: float | None, *, zero: bool = False) -> None:
    """Check that a setting, if there is one, is finite and above 0, or at least 0.

    Raises:
        ConfigError: It is not.
    """
    if value is not None and (not 0 <= value <= sys.float_info.max or (value == 0 and not zero)):
        raise ConfigError(
            f"{key} is out of range", found=value, expected="finite and >= 0" if zero else "finite and > 0"
        )
