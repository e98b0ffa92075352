"""Cache of preprocessed cases: memory-mapped, written atomically, named by hashes of scan and plan.

Data that was moved or copied finds its cases again. Every run compares the cached files with their checksums once and
makes damaged cases anew.

Layout: ``<folder>/<dataset>/<plan key>/<case>-<input key>/{image.npy, label.npy, locations.npy, meta.json}``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.trace import Trace
from volseg.io.array_folder import (
    FileEntry,
    check_folder,
    open_array,
    read_description,
    write_array,
    write_description,
)
from volseg.io.atomic import atomic_folder
from volseg.io.content import scan_sha256
from volseg.io.datasets import Case
from volseg.io.locks import folder_in_use
from volseg.parallel import Progress, for_each_case
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import preprocess_case

logger = logging.getLogger(__name__)

CODE_VERSION = 2
"""Increased whenever preprocessing gives other arrays for the same input and plan."""
PLAN_FIELDS = ("channels", "labels", "ignore_label", "slice_axis", "spacing_mm", "intensity", "crop_nonzero")
"""The fields of the plan that preprocessing depends on, beside ``regions``; others do not invalidate the cache."""
FILES = "files"
"""Key of the paths beside the hashes of a case."""
SHOWN_DAMAGES = 5
LONGEST_FOLDER = 180
"""Most bytes of a name in a folder's name; file systems allow 255, and a hash follows."""
HINT = "set data.cache to a folder with room that you may write to"


@dataclass(frozen=True)
class StoredCase:
    """A case on disk from which patches are cut; pickled as its path, so that worker processes map the files.

    Attributes:
        id: Name of the case.
        folder: Folder of its files.
        files: Their names.
    """

    id: str
    folder: Path
    files: ClassVar[tuple[str, ...]] = ("image.npy", "label.npy", "locations.npy")

    @property
    def image(self) -> NDArray[np.float32]:
        """(C, D, H, W) float32, read-only memory map."""
        return open_array(self.folder / "image.npy")

    @property
    def label(self) -> NDArray[Any]:
        """(D, H, W) class indices, -1 is ignored; read-only memory map."""
        return open_array(self.folder / "label.npy")

    @property
    def locations(self) -> NDArray[np.int32]:
        """(N, 4): class index and voxel (d, h, w), as in :class:`PreparedCase`."""
        return open_array(self.folder / "locations.npy")


@dataclass(frozen=True)
class CachedCase(StoredCase):
    """A preprocessed case on the plan's grid."""

    @property
    def meta(self) -> dict[str, Any]:
        """Input files with their hashes, and the Trace, as plain values."""
        return read_description(self.folder)

    @property
    def identity(self) -> dict[str, str]:
        """Hashes over the contents of the files that were preprocessed, as :func:`input_identity` returns them."""
        return {key: value for key, value in self.meta["inputs"].items() if key != FILES}

    @property
    def grid(self) -> Grid:
        """The working grid."""
        return self.trace.target

    @property
    def trace(self) -> Trace:
        """Record of the way from the file's grid to the working grid."""
        return Trace.from_dict(self.meta["trace"])


@contextmanager
def cache_in_use(cases: Path) -> Iterator[None]:
    """Protect stored cases from ``volseg cache --remove`` while the block runs, and record that they were used now.

    Args:
        cases: Their folder in the cache, as :func:`plan_folder` returns it.

    Raises:
        OutputError: The folder cannot be created.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_in_use(cases))
        except OSError as error:
            found = error.strerror or error
            raise OutputError("the cache cannot be created", file=cases, found=found, hint=HINT) from error
        with suppress(OSError):  # a cache of another user
            os.utime(cases)
        yield


def cache_dataset(
    cases: Sequence[Case],
    plan: Plan,
    folder: str | Path,
    progress: Progress | None = None,
    workers: int = 0,
) -> list[CachedCase]:
    """Preprocess the cases that are not in the cache yet, or damaged there.

    Args:
        cases: Cases of a data set.
        plan: Plan.
        folder: Cache folder; concurrent runs can share it: one writes a case, the others wait for it.
        progress: Called after every case with (done, in all).
        workers: Processes; 0 works in this one.

    Returns:
        The cached cases, in the order given.

    Raises:
        DataError: Some cases cannot be used; each is named.
        OutputError: The cache folder cannot be written to.
    """
    work = partial(cache_case, plan=plan, folder=Path(folder))
    outcomes = for_each_case(work, cases, workers=workers, progress=progress)
    log_damage([damage for _, damage in outcomes if damage is not None])
    return [case for case, _ in outcomes]


def cache_case(case: Case, plan: Plan, folder: Path) -> tuple[CachedCase, DataError | None]:
    """Check a case of the cache; preprocess it if it is missing or damaged.

    Returns:
        The cached case, and the damage that was found and repaired.
    """
    inputs = input_identity(case)
    place = plan_folder(folder, plan) / f"{safe_name(case.id)}-{digest(inputs)[:12]}"
    cached = CachedCase(case.id, place)
    damage = damage_of(cached) if place.is_dir() else None
    if damage is not None or not place.is_dir():
        _write(case, plan, inputs, cached, replace=damage is not None)
    return cached, damage


def damage_of(case: StoredCase) -> DataError | None:
    """Return what is wrong with the files of a stored case, which are read whole; ``None`` if they are intact."""
    try:
        check_folder(case.folder, case.files)
    except DataError as damage:
        return damage
    return None


def log_damage(damages: Sequence[DataError]) -> None:
    """Log which stored cases were damaged, or without checksums, and are made anew."""
    shown = "".join(f"\n{damage}" for damage in damages[:SHOWN_DAMAGES])
    if damages:
        logger.warning("%d damaged or outdated cases of the cache are made anew:%s", len(damages), shown)


def plan_key(plan: Plan) -> str:
    """Return 12 hexadecimal digits: a hash of the plan fields that preprocessing reads and of its code version."""
    values = plan.to_dict()
    regions = {} if plan.regions is None else {"regions": values["regions"]}
    return digest({"code": CODE_VERSION, **{name: values[name] for name in PLAN_FIELDS}, **regions})[:12]


def plan_folder(folder: str | Path, plan: Plan) -> Path:
    """Return the folder in a cache that holds the cases of a plan."""
    return Path(folder) / safe_name(plan.dataset) / plan_key(plan)


def input_identity(case: Case) -> dict[str, str]:
    """Return hashes over the contents of the files of image and label.

    Raises:
        DataError: A file is missing or unreadable.
    """
    image = {"image_sha256": scan_sha256(case.images)}
    return image if case.label is None else {**image, "label_sha256": scan_sha256([case.label])}


def data_hash(cases: Sequence[CachedCase]) -> str:
    """Return one hash of all cases (files, plan fields, code version), independent of their order."""
    return digest(sorted(f"{case.folder.parent.name}/{case.folder.name}" for case in cases))


def _write(case: Case, plan: Plan, inputs: dict[str, str], cached: CachedCase, *, replace: bool) -> None:
    with atomic_folder(cached.folder, replace=replace, hint=HINT) as folder:
        if not replace and cached.folder.is_dir():
            return  # another process has written it while this one waited
        prepared, entries = preprocess_case(case, plan), dict[str, FileEntry]()
        for name in ("image", "label", "locations"):
            write_array(folder / f"{name}.npy", getattr(prepared, name), entries)
        files = [str(path) for path in (*case.images, case.label) if path is not None]
        values = {"case": prepared.id, "inputs": {**inputs, FILES: files}, "trace": prepared.trace.to_dict()}
        write_description(folder, values, entries)


def digest(value: Any) -> str:
    """Return the SHA-256 of plain values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def safe_name(name: str) -> str:
    """Return a name that is valid as a folder on every system."""
    safe = re.sub(r"[^\w.-]", "_", name).lstrip(".")
    return safe.encode()[:LONGEST_FOLDER].decode(errors="ignore") or "_"
