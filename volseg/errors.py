"""Errors that a user can meet: each names the file, what was found, what was expected, and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

Error = TypeVar("Error", bound="VolsegError")
MOST_NAMES = 1000  # of a folder, that are compared with the name that is missing


class VolsegError(Exception):
    """A file, setting or folder that volseg cannot use.

    Args:
        problem: What is wrong, in one sentence.
        file: The file or folder concerned.
        found: What was found there.
        expected: What is valid.
        hint: How to fix it.
        kind: Which of the findings of a data set (``volseg.io.findings.KINDS``) it is.

    Attributes:
        shown_elsewhere: Another process of ``torchrun`` prints it.
    """

    shown_elsewhere = False

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
        kind: str | None = None,
    ) -> None:
        parts = {"file": file, "found": found, "expected": expected, "hint": hint}
        self._parts = {key: str(value) for key, value in parts.items() if value is not None}
        self.problem = problem
        self.kind = kind
        self.file = self._parts.get("file")
        self.found, self.expected, self.hint = (self._parts.get(key) for key in ("found", "expected", "hint"))
        lines = [problem] + [f"  {key}: {value}" for key, value in self._parts.items()]
        super().__init__("\n".join(lines))

    @property
    def in_short(self) -> str:
        """The problem and what was found, as the ``found`` of an error that this one causes."""
        return self.problem if self.found is None else f"{self.problem}: {self.found}"

    def in_file(self: Error, file: str | Path | None) -> Error:
        """Return the same error with its file, if it has none yet."""
        if file is None or self.file is not None:
            return self
        parts: dict[str, Any] = {**self._parts, "file": file, "kind": self.kind}
        return type(self)(self.problem, **parts)


class ConfigError(VolsegError):
    """A configuration key or value is invalid."""


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


def counted(number: int | str, noun: str) -> str:
    """Return a number with its noun, as in ``1 case``, ``2 cases`` and ``3 classes``; a text is a number as written."""
    plural = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number} {noun}{'' if str(number) == '1' else plural}"


def suggestion(name: object, choices: Iterable[str], alike: float = 0.6) -> str | None:
    """Return the choice that is spelt most like a name, or ``None`` if none is similar.

    Args:
        name: The name.
        choices: Those that it may mean.
        alike: How similar a choice must be, from 0 to 1.
    """
    return next(iter(difflib.get_close_matches(str(name), list(choices), n=1, cutoff=alike)), None)


def missing_hint(path: Path) -> str:
    """Return a hint for a path that leads to nothing: the entry of its folder that is spelt alike, if there is one."""
    try:
        names = [entry.name for entry in islice(path.parent.iterdir(), MOST_NAMES)]
    except (OSError, ValueError):
        names = []
    similar = suggestion(path.name, sorted(names))
    return f"did you mean {path.with_name(similar)}?" if similar else "check the path"
