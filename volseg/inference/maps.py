"""Files of class probabilities and of their uncertainty, written slice by slice."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volseg.errors import OutputError
from volseg.geometry.ops import axis_order
from volseg.geometry.trace import Trace
from volseg.io.volumes import write_map


class _SliceWriter:
    """Writer that fills an array (..., D, H, W) on the scan's grid with slices of the cropped grid."""

    def __init__(self, array: NDArray[np.generic], trace: Trace) -> None:
        self._target = trace.cropped_view(array)

    def _put(self, index: int, values: Tensor) -> None:
        self._target[..., index, :, :] = values.numpy()


class ProbabilityWriter(_SliceWriter):
    """Writer of the probabilities (K, H, W) of each slice."""

    def write(self, index: int, probabilities: Tensor) -> None:
        """Write the probabilities (K, H, W) of slice ``index``."""
        self._put(index, probabilities)


class UncertaintyWriter(_SliceWriter):
    """Writer of the entropy of each voxel's probabilities in nats: 0 if one class has all, log(K) if all are equal.

    Regions are taken for independent: the entropies of in and out are added, up to K log(2).
    """

    def __init__(self, array: NDArray[np.generic], trace: Trace, *, regions: bool) -> None:
        super().__init__(array, trace)
        self._regions = regions

    def write(self, index: int, probabilities: Tensor) -> None:
        """Write the entropy (H, W) of slice ``index``."""
        entropy = torch.special.entr(probabilities)
        if self._regions:
            entropy += torch.special.entr(1 - probabilities)
        self._put(index, entropy.sum(dim=0))


@contextmanager
def probability_file(path: Path, classes: int, trace: Trace, *, regions: bool) -> Iterator[ProbabilityWriter]:
    """Open a NIfTI file of the probabilities (D, H, W, K) as float32 on the scan's own grid, written atomically.

    Cropped voxels have probability 1 for the background, and 0 for every region.

    Args:
        path: The ``.nii`` file.
        classes: Number of classes or regions K.
        trace: Steps from the scan's grid to the working grid.
        regions: Whether these are regions, without a background among them.

    Raises:
        OutputError: The file cannot be written.
    """
    with _map_on_disk(path, (classes, *trace.source.shape), trace) as array:
        if not regions and trace.cropped_view(array[0]).size < array[0].size:
            array[0] = 1  # cropped voxels are background
        yield ProbabilityWriter(array, trace)
        write_map(path, np.moveaxis(array, 0, -1), trace.source)


@contextmanager
def uncertainty_file(path: Path, trace: Trace, *, regions: bool) -> Iterator[UncertaintyWriter]:
    """Open a NIfTI file of the entropy (float32, nats) on the scan's own grid, written atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    with _map_on_disk(path, trace.source.shape, trace) as array:
        yield UncertaintyWriter(array, trace, regions=regions)
        write_map(path, array, trace.source)


@contextmanager
def _map_on_disk(path: Path, shape: tuple[int, ...], trace: Trace) -> Iterator[NDArray[np.float32]]:
    """Map a temporary file beside ``path`` as an array (..., D, H, W): in memory it would exceed the limit.

    Slices lie together in it. If the slice axis is the scan's last axis (the usual case), the array is in Fortran
    order: in C order every slice would touch every page of the file.
    """
    with tempfile.TemporaryFile(dir=path.parent) as file:
        order, _ = axis_order(trace.source, trace.cropped.orientation)
        try:
            array = np.memmap(file, np.float32, mode="w+", shape=shape, order="F" if order[0] == 2 else "C")
            _reserve(cast(BinaryIO, file))
        except OSError as error:
            raise OutputError("the file cannot be written", file=path, found=error.strerror or error) from error
        yield array
        del array


def _reserve(file: BinaryIO) -> None:
    """Reserve the file's disk space: a full disk then raises OSError here, not SIGBUS when a mapped page is written."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system cannot reserve space
            raise
