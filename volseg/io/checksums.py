"""CRC-32 checksums of files: computed while a file is written, compared when it is read.

CRC-32 notices every flipped bit and every run of up to 32 damaged bits; other damage passes once in 4 billion times.
It protects against damage, not against a forger.
"""

from __future__ import annotations

import zlib
from typing import Any, BinaryIO

CHUNK_BYTES = 2**20


class ChecksumWriter:
    """Write a binary file from start to end and compute its checksum on the way.

    Args:
        file: The file, open for writing.
        defer_errors: A write that fails does not raise: what follows is dropped, and :meth:`close` raises. A writer in
            C++ such as torch's would turn the `OSError` into an error of another kind, or end the process.

    Attributes:
        size: Bytes so far.
        crc32: Checksum so far.
    """

    def __init__(self, file: BinaryIO, *, defer_errors: bool = False) -> None:
        self._file = file
        self._defer_errors = defer_errors
        self._error: OSError | None = None
        self.size = 0
        self.crc32 = 0

    def write(self, data: Any) -> int:
        """Write bytes or a contiguous buffer of bytes; return their number."""
        if self._error is None:
            try:
                self._file.write(data)
                self.crc32 = zlib.crc32(data, self.crc32)
                self.size += len(data)
            except OSError as error:
                if not self._defer_errors:
                    raise
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: the file is flushed by who opened it."""

    def close(self) -> None:
        """Raise the deferred error of a write that failed. The file stays open.

        Raises:
            OSError: Something was not written.
        """
        if self._error is not None:
            raise self._error


def read_crc32(file: BinaryIO, size: int) -> int:
    """Return the checksum of the next ``size`` bytes of a file, or of fewer where it ends before."""
    crc32 = 0
    while size > 0 and (chunk := file.read(min(size, CHUNK_BYTES))):
        crc32 = zlib.crc32(chunk, crc32)
        size -= len(chunk)
    return crc32
