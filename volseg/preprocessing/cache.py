"""Cache of preprocessed cases: memory-mapped, written atomically, named by hashes of input and plan.

Layout: ``<folder>/<dataset>/<plan key>/<case>-<input key>/{image.npy, label.npy, locations.npy, meta.json}``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError
from volseg.geometry.grid import Grid
from volseg.geometry.trace import Trace
from volseg.io.atomic import atomic_folder
from volseg.io.datasets import Case
from volseg.io.json_files import read_json, to_json
from volseg.parallel import Progress, for_each_case
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import PreparedCase, preprocess_case

CODE_VERSION = 2
"""Increased whenever preprocessing gives other arrays for the same input and plan."""
PLAN_FIELDS = ("channels", "labels", "ignore_label", "slice_axis", "spacing_mm", "intensity", "crop_nonzero")
"""The fields of the plan that preprocessing depends on; a change of others does not invalidate the cache."""
HEADER_BYTES = 4096
HINT = "set data.cache to a folder with room that you may write to"


@dataclass(frozen=True)
class StoredCase:
    """A case on disk from which patches are cut; pickled as its path, so that worker processes map the files.

    Attributes:
        id: Name of the case.
        folder: Folder of its files.
    """

    id: str
    folder: Path

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
        """Input files, working grid and Trace as plain values."""
        values: dict[str, Any] = read_json(self.folder / "meta.json", "cached case's", DataError)
        return values

    @property
    def grid(self) -> Grid:
        """The working grid."""
        return self.trace.target

    @property
    def trace(self) -> Trace:
        """Record of the way from the file's grid to the working grid."""
        return Trace.from_dict(self.meta["trace"])


def open_array(path: Path) -> NDArray[Any]:
    """Open an array on disk as a read-only memory map.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with np.errstate(over="ignore"):  # sizes beyond 64 bits, which then do not fit the file
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, EOFError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            "a cached case cannot be read", file=path, found=error, hint="delete its folder and start again"
        ) from error


def cache_dataset(
    cases: Sequence[Case],
    plan: Plan,
    folder: str | Path,
    progress: Progress | None = None,
    workers: int = 0,
) -> list[CachedCase]:
    """Preprocess the cases that are not in the cache yet.

    Args:
        cases: Cases of a data set.
        plan: Plan.
        folder: Cache folder; concurrent runs can share it.
        progress: Called after every case with (done, in all).
        workers: Processes; 0 works in this one.

    Returns:
        The cached cases, in the order given.

    Raises:
        DataError: Some cases cannot be used; each is named.
        OutputError: The cache folder cannot be written to.
    """
    return for_each_case(partial(cache_case, plan=plan, folder=Path(folder)), cases, workers=workers, progress=progress)


def cache_case(case: Case, plan: Plan, folder: Path) -> CachedCase:
    """Return a case of the cache; preprocess it first if it is missing."""
    inputs = input_identity(case)
    case_folder = folder / _safe(plan.dataset) / plan_key(plan) / f"{_safe(case.id)}-{digest(inputs)[:12]}"
    if not case_folder.is_dir():
        _write(preprocess_case(case, plan), inputs, case_folder)
    return CachedCase(case.id, case_folder)


def plan_key(plan: Plan) -> str:
    """Return 12 hexadecimal digits: a hash of the plan fields that preprocessing reads and of its code version."""
    values = plan.to_dict()
    return digest({"code": CODE_VERSION, **{name: values[name] for name in PLAN_FIELDS}})[:12]


def input_identity(case: Case) -> list[dict[str, Any]]:
    """Return the identity of a case's files: path, size, modification time and a hash of the first 4096 bytes.

    Raises:
        DataError: A file is missing or unreadable.
    """
    identity = []
    for path in (*case.images, *((case.label,) if case.label is not None else ())):
        try:
            state = path.stat()
            entry = {"path": str(path.resolve()), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
            if path.is_file():
                with path.open("rb") as file:
                    entry["header_sha256"] = hashlib.sha256(file.read(HEADER_BYTES)).hexdigest()
        except OSError as error:
            raise DataError("the file cannot be read", file=path, found=error) from error
        identity.append(entry)
    return identity


def data_hash(cases: Sequence[CachedCase]) -> str:
    """Return one hash of all cases (files, plan fields, code version), independent of their order."""
    return digest(sorted(f"{case.folder.parent.name}/{case.folder.name}" for case in cases))


def _write(prepared: PreparedCase, inputs: list[dict[str, Any]], place: Path) -> None:
    with atomic_folder(place, replace=False, hint=HINT) as folder:
        for name in ("image", "label", "locations"):
            np.save(folder / f"{name}.npy", getattr(prepared, name), allow_pickle=False)
        meta = {"case": prepared.id, "inputs": inputs, "trace": prepared.trace.to_dict()}
        (folder / "meta.json").write_text(to_json(meta) + "\n", encoding="utf-8")


def digest(value: Any) -> str:
    """Return the SHA-256 of plain values, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _safe(name: str) -> str:
    """Return a name that is valid as a folder on every system."""
    return re.sub(r"[^\w.-]", "_", name) or "_"
