"""Scans as slices for a frozen encoder: prepared by the plan of a model, or without a plan as for pretraining."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volseg.config.schema import Config
from volseg.device import choose_device
from volseg.errors import DataError
from volseg.geometry.trace import Trace
from volseg.inference.ensemble import read_network
from volseg.inference.predictor import Predictor
from volseg.io.cases import Case, list_images
from volseg.io.model_folder import one_model_file
from volseg.io.volumes import read_grid
from volseg.parallel import Progress
from volseg.preprocessing.cache import cache_in_use
from volseg.preprocessing.intensity import Scaling
from volseg.preprocessing.preprocess import PreparedImage, prepare_image
from volseg.pretraining.slices import AS_STORED, candidates, ct_scaling
from volseg.pretraining.store import ORIENTATION, StoredScan, store_folder, store_scans
from volseg.probing.encoder import FrozenEncoder, encoder_of_config, encoder_of_model


@dataclass(frozen=True, eq=False)
class ScanSlices:
    """The slices of a scan.

    Attributes:
        id: Name of the scan.
        image: The scan, slices along axis 0.
    """

    id: str
    image: PreparedImage

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.image.shape[0]

    def evenly(self, most: int) -> list[int]:
        """Return evenly spaced slices, the middle ones of equal parts of the scan; all if there are no more."""
        parts = min(most, self.count)
        return [(2 * part + 1) * self.count // (2 * parts) for part in range(parts)]

    def stack(self, index: int, halo: int) -> Tensor:
        """Return a slice with its neighbours, normalised; at the ends of the scan the outermost slice is repeated.

        Args:
            index: The slice.
            halo: Neighbours on each side.

        Returns:
            ``(1, C, 1 + 2 halo, H, W)`` float32.
        """
        wanted = np.clip(np.arange(index - halo, index + halo + 1), 0, self.count - 1)
        slab = self.image.slab(int(wanted[0]), int(wanted[-1]) + 1)
        return torch.from_numpy(slab[None, :, wanted - wanted[0]])

    @property
    def file_slices(self) -> int:
        """Number of slices in the file, along the same axis."""
        return self.image.trace.source.shape[self._file_axis]

    def of_file(self, number: int) -> int | None:
        """Return the slice that shows slice ``number`` of the file, counted from 0 in the file's own order.

        It is the nearest one where the scan is resampled, and ``None`` where only zeros were there and were cropped.
        """
        source, target = self.image.trace.source, self.image.trace.target
        voxel = (np.array(source.shape) - 1) / 2
        voxel[self._file_axis] = number
        place = np.linalg.solve(target.affine, [*source.to_mm(voxel), 1])[0]
        inside = -0.5 <= place <= self.count - 0.5
        return int(np.clip(np.rint(place), 0, self.count - 1)) if inside else None

    @property
    def _file_axis(self) -> int:
        source, target = self.image.trace.source, self.image.trace.target
        return int(np.argmax(np.abs(source.affine[:3, :3].T @ target.affine[:3, 0]) / source.spacing_mm))


@dataclass(frozen=True, eq=False)
class ScanSet:
    """Scans, and the encoder of their slices.

    Attributes:
        encoder: The encoder.
        cases: The scans as files.
        read: Reads one of them.
    """

    encoder: FrozenEncoder
    cases: tuple[Case, ...]
    read: Callable[[Case], ScanSlices]


def scans_of_model(model: str | Path, scans: str | Path, device: str) -> ScanSet:
    """Return scans as the plan of a trained model prepares them, and its encoder.

    Args:
        model: A model file or run folder.
        scans: A scan, a folder or a list of scans.
        device: Where the encoder runs.

    Raises:
        DataError: There are no scans.
        ModelFileError: The model cannot be read, or has no slice encoder.
    """
    file, place = one_model_file(Path(model)), choose_device(device)
    network = read_network(file, place, torch.float32)
    encoder = encoder_of_model(network.model, file, place)
    predictor = Predictor([network], device=place, precision="32", model_files=[file])

    def read(case: Case) -> ScanSlices:
        return ScanSlices(case.id, prepare_image(predictor.read(case.images), network.plan))

    return ScanSet(encoder, tuple(list_images(scans, network.plan.num_channels)), read)


@contextmanager
def scans_of_config(
    config: Config, cases: Sequence[Case], cache: Path, progress: Progress | None = None
) -> Iterator[ScanSet]:
    """Return scans as pretraining prepares them, and the encoder of a configuration.

    Slices lie along the axis of the coarsest spacing, ties to the first of I, P and L; each has square pixels of its
    finer spacing.

    Args:
        config: The configuration.
        cases: The scans as files, each with all its channels.
        cache: Folder in which prepared scans are kept.
        progress: Called after every prepared scan with (done, in all).

    Raises:
        ConfigError: The configuration has no encoder.
        DataError: Some scans cannot be used, or they have different numbers of channels.
        ModelFileError: The weight file does not exist or does not fit.
    """
    folder = store_folder(cache, "probing", None)
    with cache_in_use(folder):
        stored = store_scans(cases, folder, None, progress, workers=config.data.workers)
        channels = len(stored[0].is_ct)
        for scan, case in zip(stored, cases, strict=True):
            if len(scan.is_ct) != channels:
                problem, expected = "the scans have different numbers of channels", f"{channels}, as in {cases[0].id}"
                raise DataError(problem, file=case.images[0], found=len(scan.is_ct), expected=expected)
        by_id, ct = {scan.id: scan for scan in stored}, ct_scaling(stored)

        def read(case: Case) -> ScanSlices:
            return ScanSlices(case.id, _prepared(by_id[case.id], case, ct))

        yield ScanSet(encoder_of_config(config, channels), tuple(cases), read)


def _prepared(scan: StoredScan, case: Case, ct: Scaling) -> PreparedImage:
    """Return a stored scan with its slice axis first, and the way from the grid of its file."""
    axis = candidates(scan, "slice")[0]
    order = [axis, *(other for other in range(3) if other != axis)]
    grid = read_grid(case.images[0])
    blank: NDArray[np.int8] = np.broadcast_to(np.int8(0), (1, *grid.shape))
    blank, trace = Trace(grid).reorient(blank, "".join(ORIENTATION[each] for each in order))
    start = [scan.start[each] for each in order]
    shape = [scan.shape[each] for each in order]
    if start != [0, 0, 0] or tuple(shape) != trace.target.shape:
        _, trace = trace.crop(blank, start, _stop(start, shape))
    depth_mm, *plane_mm = trace.target.spacing_mm
    trace, matrices = trace.plan_resample((depth_mm, min(plane_mm), min(plane_mm)))
    stored = np.transpose(scan.volume, (0, *(each + 1 for each in order)))
    return PreparedImage(stored, tuple(ct if is_ct else AS_STORED for is_ct in scan.is_ct), matrices, trace)


def _stop(start: Sequence[int], shape: Sequence[int]) -> list[int]:
    return [first + length for first, length in zip(start, shape, strict=True)]
