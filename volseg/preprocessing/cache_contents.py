"""What a cache folder holds: the preprocessed cases and stored tokens of each plan; listing and removal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import DataError, OutputError
from volseg.io.array_folder import DESCRIPTION
from volseg.io.atomic import remove_stale
from volseg.io.locks import unused_folder

TOKENS = "tokens"
"""Folder of stored tokens, beside the cases of a plan."""
PLAN_KEY = re.compile(r"[0-9a-f]{12}")
CASE_NAME = re.compile(r".+-[0-9a-f]{12}")


@dataclass(frozen=True)
class CachedPlan:
    """The cases of a data set that one plan preprocessed.

    Attributes:
        folder: Their folder, ``<cache>/<data set>/<plan key>``.
        cases: Number of cases.
        case_bytes: Their size.
        token_bytes: Size of the stored tokens.
        used: When a training last began to use them, in seconds since 1970.
    """

    folder: Path
    cases: int
    case_bytes: int
    token_bytes: int
    used: float

    @property
    def name(self) -> str:
        """Data set and plan key, as ``volseg cache`` prints them."""
        return f"{self.folder.parent.name}/{self.folder.name}"


def list_cache(folder: str | Path) -> list[CachedPlan]:
    """Return the contents of a cache folder, by name. Other files and folders in it are passed over.

    Raises:
        DataError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        hint = "give the folder: data.cache, or preprocessed/ beside the run folders"
        raise DataError("there is no cache folder", file=folder, hint=hint)
    plans = [plan for plan in sorted(folder.glob("*/*")) if PLAN_KEY.fullmatch(plan.name) and plan.is_dir()]
    return [_measure(plan) for plan in plans]


def remove_cached(plan: CachedPlan) -> bool:
    """Remove the cases and tokens of a plan, and folders that are empty then; files of others stay.

    Returns:
        Whether they were removed: those that a training uses are kept.

    Raises:
        OutputError: They cannot be removed.
    """
    try:
        with unused_folder(plan.folder) as unused:
            if not unused:
                return False
            for array_folder in [*_array_folders(plan.folder), *_array_folders(plan.folder / TOKENS)]:
                shutil.rmtree(array_folder)
            _remove_empty(plan.folder)
    except OSError as error:
        raise OutputError("the cache cannot be removed", file=plan.folder, found=error.strerror or error) from error
    with suppress(OSError):  # other plans of the data set
        plan.folder.parent.rmdir()
    return True


def _measure(folder: Path) -> CachedPlan:
    cases = list(_array_folders(folder))
    tokens = list(_array_folders(folder / TOKENS))
    return CachedPlan(folder, len(cases), _size(cases), _size(tokens), folder.stat().st_mtime)


def _array_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of cases, ``<case>-<hash>``, or of variants, ``<key>/<case>-<hash>/<variant>``."""
    depth = "*/*/*" if folder.name == TOKENS else "*"
    for found in sorted(folder.glob(depth)):
        case = found.parent if folder.name == TOKENS else found
        is_folder = CASE_NAME.fullmatch(case.name) and found.is_dir() and not found.is_symlink()
        if is_folder and all(file.suffix == ".npy" or file.name == DESCRIPTION for file in found.iterdir()):
            yield found


def _size(folders: list[Path]) -> int:
    return sum(file.stat().st_size for folder in folders for file in folder.iterdir())


def _remove_empty(folder: Path) -> None:
    """Remove what killed processes left in a folder, and its folders that hold nothing."""
    remove_stale(folder)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _remove_empty(entry)
    with suppress(OSError):  # it holds something
        folder.rmdir()
