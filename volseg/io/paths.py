"""Paths in lists, and questions about paths that never raise.

A path that is too long, holds a NUL, or may not be read is not there.
"""

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


def listed_path(text: str, folder: Path) -> Path:
    """Return a path of a list; backslashes of Windows count as slashes where that leads to something.

    Args:
        text: The path, as the list has it.
        folder: What it is relative to.
    """
    path = folder / text
    other = folder / text.replace("\\", "/")
    return other if other != path and exists(other) and not exists(path) else path
