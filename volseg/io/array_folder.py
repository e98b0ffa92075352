"""A folder of arrays (``.npy``) with a description that holds size and checksum of each.

The description, ``meta.json``, has a checksum of its own, so every flipped bit of the folder is noticed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError
from volseg.io.checksums import ChecksumWriter, read_crc32
from volseg.io.json_files import read_json, to_json

DESCRIPTION = "meta.json"
HINT = "start again: a damaged case is made anew"

FileEntry = dict[str, Any]
"""``bytes`` and ``crc32`` of a file."""


@contextmanager
def array_file(path: Path, dtype: np.dtype[Any], shape: Sequence[int], entries: dict[str, FileEntry]) -> Iterator[Any]:
    """Open an array file, to which the values are written in C order, piece by piece.

    Args:
        path: The file.
        dtype: Type of the values.
        shape: Shape of the whole array.
        entries: Receives the file's entry of the description when the block ends.

    Yields:
        A writer whose ``write`` takes arrays of bytes.
    """
    with path.open("wb") as file:
        writer = ChecksumWriter(file)
        header = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(writer, header)
        yield writer
    entries[path.name] = {"bytes": writer.size, "crc32": f"{writer.crc32:08x}"}


def write_array(path: Path, array: NDArray[Any], entries: dict[str, FileEntry]) -> None:
    """Write an array and add its entry of the description."""
    with array_file(path, array.dtype, array.shape, entries) as file:
        file.write(as_bytes(array))


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of an array in C order, without a copy where it is stored so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def open_array(path: Path) -> NDArray[Any]:
    """Open an array on disk as a read-only memory map.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with np.errstate(over="ignore"):  # sizes beyond 64 bits, which then do not fit the file
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, EOFError, ValueError, OverflowError, TypeError, SyntaxError) as error:
        raise DataError("a cached case cannot be read", file=path, found=error, hint=HINT) from error


def write_description(folder: Path, values: Mapping[str, Any], entries: Mapping[str, FileEntry]) -> None:
    """Write ``meta.json``: plain values, the entries of all files, and a checksum of both."""
    content = {**values, "files": dict(entries)}
    text = to_json({**content, "crc32": _crc32(content)})  # no newline: nothing can be cut off unnoticed
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``meta.json``.

    Raises:
        DataError: It is missing, damaged, or without checksums as in earlier versions.
    """
    path = folder / DESCRIPTION
    values = read_json(path, "cached case's", DataError)
    if not isinstance(values, dict) or "files" not in values:
        raise DataError("a cached case has no checksums", file=path, found="of an earlier version", hint=HINT)
    if values.pop("crc32", None) != _crc32(values):
        raise DataError("a cached case's description is damaged", file=path, hint=HINT)
    return values


def check_folder(folder: Path, names: Sequence[str]) -> None:
    """Compare all files with the description; they are read once, whole.

    Args:
        folder: The folder.
        names: Files that must be there.

    Raises:
        DataError: A file is missing or damaged, or there is no description with checksums.
    """
    entries = read_description(folder)["files"]
    for name in sorted({*names, *entries}):
        path, entry = folder / name, entries.get(name)
        found = _entry(path)
        if found != entry:
            raise DataError("a cached case is damaged", file=path, found=found, expected=entry, hint=HINT)


def _entry(path: Path) -> FileEntry:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return {"bytes": size, "crc32": f"{read_crc32(file, size):08x}"}
    except OSError as error:
        raise DataError("a cached case cannot be read", file=path, found=error.strerror or error, hint=HINT) from error


def _crc32(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
