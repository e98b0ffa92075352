"""Atomic writing: a file or folder gets its name only when it is complete and on the disk."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from volseg.errors import OutputError
from volseg.io.locks import Unsupported, lock_open_file, still_at

HINT = "choose a folder with write permission and free space"
TEMPORARY = ".volseg-tmp"
"""Ending of the hidden file or folder that is being written; it is locked until it has its name."""
PREVIOUS = ".volseg-old"
"""Ending of a folder that is being replaced."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends without an error.

    Missing parent folders are created. After an error nothing is left behind, and an existing file is unchanged. After
    the block, content and name are on the disk (fsync). A second writer of the same path waits for the first.

    Args:
        path: The file to write.

    Yields:
        The temporary file, open for binary writing; it must not be replaced by another file of its name.

    Raises:
        OutputError: The folder cannot be created or written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _locked_temporary(path, _open_file)
        with open(temporary, "wb", opener=lambda *_: descriptor) as file:
            try:
                file.truncate()
                yield file
                file.flush()
                os.fsync(descriptor)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)  # before the lock ends with the file
                raise
        _sync(path.parent)
    except OSError as error:
        raise _not_written("file", path, error) from error


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = True, hint: str = HINT) -> Iterator[Path]:
    """Create a temporary folder that replaces ``path`` when the block ends without an error.

    Missing parent folders are created. After an error nothing is left behind, and an existing folder is unchanged.
    After the block, all files and names are on the disk (fsync). A second writer of the same path waits for the first.

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
    previous = _beside(path, PREVIOUS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _locked_temporary(path, _open_folder)
        try:
            _recover(previous, path)
            yield temporary
            _sync_tree(temporary)
            _move_folder(temporary, path, previous if replace else None)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # before the lock ends
            raise
        finally:
            _recover(previous, path)
            os.close(descriptor)
        _sync(path.parent)
    except OSError as error:
        raise _not_written("folder", path, error, hint) from error


@contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """Create a hidden folder beside ``path`` that is removed when the block ends; see :func:`remove_stale` for kills.

    Yields:
        The folder, empty.

    Raises:
        OutputError: The folder cannot be created.
    """
    path = Path(path)
    try:
        temporary, descriptor = _locked_temporary(path, _open_folder)
    except OSError as error:
        raise _not_written("folder", path, error) from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Remove what killed processes left in a folder: temporary files and folders that no living process has locked.

    A folder that was being replaced gets its name back if the new one did not come.
    """
    with suppress(OSError):
        names = [path for path in folder.iterdir() if path.name.startswith(".")]
        for path in names:
            if path.name.endswith(TEMPORARY):
                _remove_if_stale(path)
        for path in names:
            if path.name.endswith(PREVIOUS) and not path.with_name(f"{path.stem}{TEMPORARY}").exists():
                _recover(path, path.with_name(path.stem[1:]))


def free_name(path: Path) -> Path:
    """Return a path under which a file can be kept when another one takes its name: ``<name>.kept-1`` ..."""
    names = (path.with_name(f"{path.name}.kept-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _remove_if_stale(entry: Path) -> None:
    try:
        descriptor = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if lock_open_file(descriptor, wait=False) and still_at(descriptor, entry):
            _remove(entry)
    except (OSError, Unsupported):  # without locks nobody can tell whether its writer lives
        return
    finally:
        os.close(descriptor)


def _locked_temporary(path: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Create the temporary file or folder of a path, or take over that of a dead process.

    Returns:
        Its path and its locked descriptor. Where it cannot be locked, its name is unique instead.
    """
    temporary = _beside(path, TEMPORARY)
    with suppress(Unsupported, PermissionError):  # PermissionError: left by another user
        while True:
            descriptor = create(temporary)
            try:
                lock_open_file(descriptor, wait=True)
                if still_at(descriptor, temporary):
                    if temporary.is_dir():
                        _empty(temporary)
                    return temporary, descriptor
            except Unsupported:
                os.close(descriptor)
                _remove(temporary)
                raise
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the last holder has renamed or removed it
    temporary = _beside(path, f".{uuid.uuid4().hex}{TEMPORARY}")
    return temporary, create(temporary)


def _open_file(temporary: Path) -> int:
    return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _open_folder(temporary: Path) -> int:
    while True:
        temporary.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another process took the new folder, not locked yet, for a stale one
            return os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        _remove(entry)


def _remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _move_folder(temporary: Path, path: Path, previous: Path | None) -> None:
    """Give the folder its name. An existing one goes to ``previous``; without that it stays and the new one goes."""
    if previous is not None and path.exists():
        path.replace(previous)
    try:
        temporary.replace(path)
    except OSError:
        if previous is not None or not path.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def _recover(previous: Path, path: Path) -> None:
    """Give a replaced folder its name back if nothing has taken its place, else remove it."""
    if previous.exists() and not path.exists():
        previous.replace(path)
    shutil.rmtree(previous, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Wait until a file's content or a folder's names are on the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _beside(path: Path, ending: str) -> Path:
    """Return a hidden name in the same folder; file names are limited to 255 bytes."""
    return path.with_name(f".{os.fsencode(path.name)[:200].decode(errors='ignore')}{ending}")


def _not_written(kind: str, path: Path, error: OSError, hint: str = HINT) -> OutputError:
    return OutputError(f"the {kind} cannot be written", file=path, found=error.strerror or error, hint=hint)
