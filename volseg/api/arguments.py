"""Checks of the arguments of the Python interface."""

from __future__ import annotations

from pathlib import Path

PathLike = str | Path


def check_type(argument: str, value: object, *types: type) -> None:
    """Check an argument at the border, before it fails somewhere inside.

    Raises:
        ConfigError: It is of another type.
    """
    from volseg.errors import ConfigError

    if not isinstance(value, types):
        expected = " or ".join("None" if one is type(None) else one.__name__ for one in types)
        problem = f"the argument {argument} has the wrong type"
        raise ConfigError(problem, found=f"{value!r:.80} ({type(value).__name__})", expected=expected)


def check_overrides(overrides: object) -> None:
    """Check that overrides are a list of texts.

    Raises:
        ConfigError: They are something else.
    """
    check_type("overrides", overrides, list, tuple)
    for item in overrides if isinstance(overrides, list | tuple) else ():
        check_type("overrides", item, str)
