"""What a case of bad input is, how it is tried, and the message that a user gets."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from volseg.cli.main import main
from volseg.errors import VolsegError

SHOWN_FOLDER = "/data"
"""Stands in messages for the folder in which a case is tried."""


@dataclass(frozen=True)
class BadInput:
    """Something that users get wrong.

    Attributes:
        title: What is wrong, in a user's words; Markdown.
        names: The file, folder, setting or option that the message must name.
        attempt: Writes the bad input into the current folder, which is empty, and uses it. It raises the error, or
            returns what a command printed.
    """

    title: str
    names: str
    attempt: Callable[[], object]


def message(bad_input: BadInput, folder: Path) -> str:
    """Return the message that a user gets for a bad input.

    Args:
        bad_input: The case.
        folder: An empty folder, in which it is tried. Its path in the message is replaced by `SHOWN_FOLDER`.

    Raises:
        AssertionError: There is no message.
    """
    with working_directory(folder):
        try:
            text = bad_input.attempt()
        except VolsegError as error:
            text = f"error: {error}"
    assert isinstance(text, str), f"{bad_input.title}: there is no message"
    return text.replace(str(folder.resolve()), SHOWN_FOLDER).rstrip()


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """Change the current folder, as ``contextlib.chdir`` of Python 3.11 does."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def command(*arguments: str) -> str:
    """Run ``volseg`` with arguments that it refuses, and return the error that it prints."""
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        code = main(arguments)
    assert code == 2, f"volseg {' '.join(arguments)}: exit code {code}"
    return errors.getvalue()[errors.getvalue().index("error: ") :]
