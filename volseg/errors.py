"""The errors a user can meet. Each message says where, what was found, what was expected and how to hint it."""

from __future__ import annotations

from pathlib import Path


class VolsegError(Exception):
    """Something outside the program (a file, a setting, a folder) is not as it must be.

    Args:
        problem: One sentence: what is wrong.
        file: The file or folder it is wrong in.
        found: What was found there.
        expected: What would have been right.
        hint: What the user can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        parts = {"file": file, "found": found, "expected": expected, "hint": hint}
        self.problem = problem
        self.file = str(file) if file is not None else None
        lines = [problem] + [f"  {key}: {value}" for key, value in parts.items() if value is not None]
        super().__init__("\n".join(lines))


class ConfigError(VolsegError):
    """A configuration key or value is not valid."""


class DataError(VolsegError):
    """A data set, scan or label file cannot be used."""


class GeometryError(VolsegError):
    """Two grids that must agree do not, or an affine is not usable."""


class ModelFileError(VolsegError):
    """A model or weight file is missing, of another kind, or does not fit."""


class OutputError(VolsegError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(ConfigError):
    """A setting asks for an optional library that is not installed."""
