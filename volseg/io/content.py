"""Identity of scans by the content of their files, whatever their names, folders and dates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from volseg.errors import DataError
from volseg.io.volumes import files_of

BLOCK_BYTES = 1 << 20


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def scan_sha256(images: Sequence[Path]) -> str:
    """Return one hash over the contents of all files that hold a scan, or a mask.

    Args:
        images: Paths of the channels in their order. A header in a file of its own, and voxels in a file of their own,
            count as well.

    Raises:
        DataError: A path does not lead to a scan, or a file is not readable.
    """
    digest = hashlib.sha256()
    for image in images:
        for path in files_of(image):  # checks that they are regular files: a pipe would never end
            try:
                digest.update(file_sha256(path).encode())
            except OSError as error:
                raise DataError("the file cannot be read", file=path, found=error.strerror or error) from error
    return digest.hexdigest()
