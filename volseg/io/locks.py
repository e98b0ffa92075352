"""Locks between processes: one writer of a file or folder at a time; the lock of a dead process is free."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from volseg.errors import OutputError

logger = logging.getLogger(__name__)

LOCK_NAME = ".volseg-lock"
"""Lock file of a folder; it exists only while somebody writes there, or after they were killed."""
PATIENCE_S = 15.0
"""A killed process's children keep its lock until they notice its death, which takes them up to this time."""
POLL_S = 0.1


class Unsupported(Exception):
    """The file system or operating system has no locks."""


def lock_open_file(descriptor: int, *, wait: bool, shared: bool = False) -> bool:
    """Lock an open file or folder until it is closed or the process ends.

    Args:
        descriptor: Its file descriptor.
        wait: Wait for the lock.
        shared: Allow other shared locks.

    Returns:
        Whether the lock was obtained; always true with ``wait``.

    Raises:
        Unsupported: There are no locks here.
    """
    if fcntl is None:
        raise Unsupported
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, mode)
    except BlockingIOError:
        return False
    except OSError as error:  # for example a network file system without locks
        raise Unsupported from error
    return True


def still_at(descriptor: int, path: Path) -> bool:
    """Return whether a path still leads to this open file, which its last holder may have renamed or removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def folder_lock(folder: Path, task: str, *, shared_by: str | None = None, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold a folder for writing while the block runs.

    The lock ends with the process, however that ends. Where the system has no locks, a warning is logged instead.

    Args:
        folder: An existing folder.
        task: What writes there, for the message of a process that has to wait: "training", "prediction".
        shared_by: Processes with the same text may hold the folder together, for example the shards of one
            prediction.
        name: Name of the lock file.

    Raises:
        OutputError: Another process holds the folder, or the lock file cannot be written.
    """
    path = folder / name
    try:
        descriptor = _acquire(path, {"task": task, "shared_by": shared_by})
    except OSError as error:
        raise OutputError("the folder cannot be written", file=folder, found=error.strerror or error) from error
    try:
        yield
    finally:
        if descriptor is not None:
            _release(descriptor, path)


@contextmanager
def folder_in_use(folder: Path) -> Iterator[None]:
    """Create a folder if needed, and keep :func:`unused_folder` from it while the block runs; no lock file is written.

    Raises:
        OSError: The folder cannot be created or read.
    """
    descriptor = _open_used(folder)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def unused_folder(folder: Path) -> Iterator[bool]:
    """Keep :func:`folder_in_use` from a folder while the block runs.

    Yields:
        Whether it is unused; where there are no locks, nobody can tell, and this is true.

    Raises:
        OSError: The folder cannot be read.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        unused = True
        with suppress(Unsupported):
            unused = lock_open_file(descriptor, wait=False)
        yield unused
    finally:
        os.close(descriptor)


def _open_used(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # removed since
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with suppress(Unsupported):
                    lock_open_file(descriptor, wait=True, shared=True)
                if still_at(descriptor, folder):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _acquire(path: Path, holder: dict[str, str | None]) -> int | None:
    """Return the descriptor of the locked file, or ``None`` where there are no locks."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _locked(descriptor, path, holder):
                return descriptor
            other = _read_holder(descriptor)
        except Unsupported:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            logger.warning("%s: this file system has no locks; let only one process write here", path.parent)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        shared = holder["shared_by"] is not None and other is not None and other.get("shared_by") == holder["shared_by"]
        if (other is not None and _alive(other) and not shared) or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    raise OutputError(
        "another process is writing to this folder",
        file=path.parent,
        found=_describe(other),
        hint="wait until it has finished, or choose another folder",
    )


def _locked(descriptor: int, path: Path, holder: dict[str, str | None]) -> bool:
    """Try to lock the file; its first holder writes who it is."""
    if lock_open_file(descriptor, wait=False):
        if not still_at(descriptor, path):
            return False
        text = json.dumps(holder | {"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        return holder["shared_by"] is None or lock_open_file(descriptor, wait=False, shared=True)
    if holder["shared_by"] is None or not lock_open_file(descriptor, wait=False, shared=True):
        return False
    other = _read_holder(descriptor)
    return still_at(descriptor, path) and other is not None and other.get("shared_by") == holder["shared_by"]


def _release(descriptor: int, path: Path) -> None:
    """Remove the lock file unless others share it."""
    with suppress(OSError, Unsupported):
        if lock_open_file(descriptor, wait=False) and still_at(descriptor, path):
            path.unlink()
    os.close(descriptor)


def _read_holder(descriptor: int) -> dict[str, object] | None:
    """Return who holds the lock; ``None`` while they are writing it."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return None
    return holder if isinstance(holder, dict) else None


def _alive(holder: dict[str, object]) -> bool:
    """Return whether the process that took the lock may still run; one on another machine may."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _describe(holder: dict[str, object] | None) -> str:
    if holder is None:
        return "a lock without a name"
    return f"{holder.get('task')} in process {holder.get('pid')} on {holder.get('host')}"
