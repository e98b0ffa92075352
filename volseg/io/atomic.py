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

MEND = "choose a folder with write permission and free space"


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
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")  # names are limited to 255 bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            "the file cannot be written",
            file=path,
            found=error.strerror or error,
            mend=MEND,
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, mend: str = MEND) -> Iterator[Path]:
    """Makes a temporary folder beside ``path`` that takes its name only when the block ends without an error.

    Of two writers of the same folder the second one loses silently. After an error nothing is left.

    Args:
        path: The folder to make.
        mend: What the user can do when it cannot be written.

    Yields:
        The temporary folder.

    Raises:
        OutputError: The folder cannot be made or written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            temporary.rename(path)  # fails, as it must, where the folder exists already
        except OSError:
            if not path.is_dir():
                raise
    except OSError as error:
        raise OutputError("the folder cannot be written", file=path, found=error, mend=mend) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
