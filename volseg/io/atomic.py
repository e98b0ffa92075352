"""Files and folders that appear whole or not at all."""

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
    """Opens a temporary file beside ``path`` that takes its name only when the block ends without an error.

    Missing parent folders are made. After an error nothing is left, and a file that was there before is untouched.

    Args:
        path: The file to write.

    Yields:
        The temporary file, open for binary writing.

    Raises:
        OutputError: The folder cannot be made or written to, or the disk is full.
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
    """Makes a temporary folder beside ``path`` that takes its name only when the block ends without an error.

    Missing parent folders are made. After an error nothing is left, and a folder that was there before is untouched.

    Args:
        path: The folder to write.
        replace: Take the place of a folder that is there; otherwise that one stays, as when another process was faster.
        hint: What the user can do when it cannot be written.

    Yields:
        The temporary folder.

    Raises:
        OutputError: The folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    temporary, former = _beside(path, "tmp"), _beside(path, "old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if replace and path.exists():
            path.replace(former)
        try:
            temporary.replace(path)
        except OSError:
            if replace or not path.is_dir():
                raise
    except OSError as error:
        raise _not_written("folder", path, error, hint) from error
    finally:
        if former.exists() and not path.exists():
            former.replace(path)
        for folder in (temporary, former):
            shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path, ending: str) -> Path:
    """A hidden name in the same folder that no other writer has; names are limited to 255 bytes."""
    name = path.name.encode()[:180].decode(errors="ignore")
    return path.with_name(f".{name}.{uuid.uuid4().hex}.{ending}")


def _not_written(kind: str, path: Path, error: OSError, hint: str = HINT) -> OutputError:
    return OutputError(f"the {kind} cannot be written", file=path, found=error.strerror or error, hint=hint)
