"""Prepared scans of pretraining: reoriented, scaled, float16, in the cache of preprocessed cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, counted
from volseg.geometry.ops import crop, nonzero_box, reorient
from volseg.io.array_folder import FileEntry, check_folder, open_array, read_description, write_array, write_description
from volseg.io.atomic import atomic_folder
from volseg.io.cases import Case
from volseg.io.content import scan_sha256
from volseg.io.modality import looks_like_ct
from volseg.io.volumes import check_image, read_channels
from volseg.parallel import Progress, for_each_case
from volseg.planning.channel import RULE_OF_NAME
from volseg.planning.fingerprint import AIR_WINDOW_HU, SAMPLES_PER_CASE, spread
from volseg.planning.nnunet import is_cropping_large
from volseg.preprocessing.cache import HINT, digest, log_damage, safe_name
from volseg.preprocessing.intensity import case_scaling

logger = logging.getLogger(__name__)

CODE_VERSION = 2
"""Increased whenever the same scan is stored with other values."""
ORIENTATION = "IPL"
"""Directions of the axes: planes along each axis have the rows and columns that segmentation gives them."""
HU_RANGE = (-1024.0, 3071.0)
FILES = ("volume.npy", "samples.npy")


@dataclass(frozen=True)
class StoredScan:
    """A prepared scan on disk; pickled as its path, so that worker processes map the file.

    Attributes:
        id: Name of the scan.
        folder: Folder of its files.
        shape: Voxels along each axis, in `ORIENTATION`.
        spacing_mm: Voxel size along each axis.
        start: First voxel along each axis that was kept, of the reoriented file.
        is_ct: Of each channel, whether its values are HU, scaled when slices are cut; others are z-scores.
    """

    id: str
    folder: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    start: tuple[int, int, int]
    is_ct: tuple[bool, ...]

    @property
    def volume(self) -> NDArray[np.float16]:
        """(C, I, P, L) float16, read-only memory map."""
        return open_array(self.folder / FILES[0])

    @property
    def samples(self) -> NDArray[np.float32]:
        """(N,) HU of evenly spaced voxels above -500 HU: bodies without lungs and air."""
        return open_array(self.folder / FILES[1])

    @property
    def sha256(self) -> str:
        """Hash of the contents of its files."""
        return str(read_description(self.folder)["sha256"])


def store_folder(cache: Path, name: str, channels: Sequence[str] | None) -> Path:
    """Return the folder in a cache that holds the scans of a data set.

    Args:
        cache: The cache.
        name: Name of the data set.
        channels: Names of the channels, which may state CT; ``None`` if nothing states them.
    """
    key = digest({"pretraining": CODE_VERSION, "channels": None if channels is None else list(channels)})
    return cache / safe_name(name) / key[:12]


def store_scans(
    cases: Sequence[Case],
    folder: Path,
    channels: Sequence[str] | None,
    progress: Progress | None = None,
    workers: int = 0,
) -> list[StoredScan]:
    """Prepare the scans that are not stored yet, or damaged there.

    Args:
        cases: The scans; labels are not read.
        folder: Where they are stored, see `store_folder`.
        channels: Names of the channels; ``None`` lets the values of each channel decide whether it is CT.
        progress: Called after every scan with (done, in all).
        workers: Processes; 0 works in this one.

    Raises:
        DataError: Some scans cannot be used; each is named.
        OutputError: The folder cannot be written to.
    """
    logger.info("preparing %s, unless they are in the cache", counted(len(cases), "scan"))
    work = partial(_store, folder=folder, channels=channels)
    outcomes = for_each_case(work, cases, workers=workers, progress=progress)
    log_damage([damage for _, damage in outcomes if damage is not None])
    return [scan for scan, _ in outcomes]


def _store(case: Case, folder: Path, channels: Sequence[str] | None) -> tuple[StoredScan, DataError | None]:
    """Return a stored scan, and the damage that was repaired."""
    sha256 = scan_sha256(case.images)
    place, damage = folder / f"{safe_name(case.id)}-{sha256[:12]}", None
    if place.is_dir():
        try:
            check_folder(place, FILES)
            return _stored(case.id, place), None
        except DataError as error:
            damage = error
    with atomic_folder(place, replace=damage is not None, hint=HINT) as made:
        if damage is not None or not place.is_dir():  # another process may have written it
            _write(case, made, sha256, channels)
    return _stored(case.id, place), damage


def _stored(name: str, place: Path) -> StoredScan:
    meta = read_description(place)
    shape, spacing_mm, start, is_ct = (tuple(meta[key]) for key in ("shape", "spacing_mm", "start", "is_ct"))
    return StoredScan(name, place, shape, spacing_mm, start, is_ct)


def _write(case: Case, folder: Path, sha256: str, channels: Sequence[str] | None) -> None:
    volume = read_channels(case.images, tolerance_mm=case.grids.tolerance_mm)
    check_image(volume, case.images)
    data, grid = reorient(volume.data, volume.grid, ORIENTATION)
    start, stop = nonzero_box(data)
    is_cropped = is_cropping_large([float(np.prod(np.subtract(stop, start))) / data[0].size])
    if is_cropped:
        data, grid = crop(data, grid, start, stop)
    kept_from = [int(first) if is_cropped else 0 for first in start]
    is_ct = [_is_ct(channel, None if channels is None else channels[number]) for number, channel in enumerate(data)]
    stored = np.empty(data.shape, np.float16)
    for channel, ct, out in zip(data, is_ct, stored, strict=True):
        values = np.clip(channel, *HU_RANGE) if ct else case_scaling(channel, nonzero=is_cropped).apply(channel)
        np.copyto(out, values, casting="unsafe")
    entries: dict[str, FileEntry] = {}
    write_array(folder / FILES[0], stored, entries)
    write_array(folder / FILES[1], _body_samples(data[np.array(is_ct)]), entries)
    lies = {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm), "start": kept_from}
    write_description(folder, {"case": case.id, "sha256": sha256, **lies, "is_ct": is_ct}, entries)


def _is_ct(channel: NDArray[Any], name: str | None) -> bool:
    """Return whether a channel is CT: its name says so, or without a name its values."""
    return looks_like_ct(channel) if name is None else RULE_OF_NAME.get(name.strip().lower()) == "ct"


def _body_samples(channels: NDArray[Any]) -> NDArray[np.float32]:
    """Return evenly spaced values of CT channels (C, I, P, L) above -500 HU."""
    body = channels[channels > AIR_WINDOW_HU] if (channels > AIR_WINDOW_HU).any() else channels.reshape(-1)
    return np.asarray(body[spread(len(body), SAMPLES_PER_CASE)], np.float32)
