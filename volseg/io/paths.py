"""Questions about paths that never raise: a path that is too long, holds a NUL, or may not be read is not there."""

from __future__ import annotations

from pathlib import Path


def exists(path: Path) -> bool:
    """Return whether a path leads to something; a link that leads nowhere does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Return whether a path leads to a regular file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_link(path: Path) -> bool:
    """Return whether a path is a link, also one that leads to nothing."""
    try:
        return path.is_symlink()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
