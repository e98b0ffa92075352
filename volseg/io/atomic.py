"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from volseg.errors import OutputError


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
            mend="choose a folder with write permission and free space",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
