"""Atomic writing: a file or folder gets its name only when it is complete."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from volseg.errors import OutputError

HINT = "choose a folder with write permission and free space"


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends without an error.

    Missing parent folders are created. After an error nothing is left behind, and an existing file is unchanged.

    Args:
        path: The file to write.

    Yields:
        The temporary file, open for binary writing.

    Raises:
        OutputError: The folder cannot be created or written to, or the disk is full.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _not_written("file", path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = True, hint: str = HINT) -> Iterator[Path]:
    """Create a temporary folder that replaces ``path`` when the block ends without an error.

    Missing parent folders are created. After an error nothing is left behind, and an existing folder is unchanged.

    Args:
        path: The folder to write.
        replace: Replace an existing folder; otherwise it is kept, for example because another process was faster.
        hint: Hint of the error when it cannot be written.

    Yields:
        The temporary folder.

    Raises:
        OutputError: The folder cannot be created or written to, or the disk is full.
    """
    path = Path(path)
    temporary, previous = _beside(path, "tmp"), _beside(path, "old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if replace and path.exists():
            path.replace(previous)
        try:
            temporary.replace(path)
        except OSError:
            if replace or not path.is_dir():
                raise
    except OSError as error:
        raise _not_written("folder", path, error, hint) from error
    finally:
        if previous.exists() and not path.exists():
            previous.replace(path)
        for folder in (temporary, previous):
            shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path, ending: str) -> Path:
    """Return a hidden, unique name in the same folder; file names are limited to 255 bytes."""
    name = path.name.encode()[:180].decode(errors="ignore")
    return path.with_name(f".{name}.{uuid.uuid4().hex}.{ending}")


def _not_written(kind: str, path: Path, error: OSError, hint: str = HINT) -> OutputError:
    return OutputError(f"the {kind} cannot be written", file=path, found=error.strerror or error, hint=hint)
