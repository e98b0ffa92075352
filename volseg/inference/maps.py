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
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from volseg.errors import OutputError
from volseg.geometry.ops import axis_order
from volseg.geometry.trace import Trace
from volseg.io.atomic import atomic_file
from volseg.io.volumes import write_map


class _SliceWriter:
    """Writer that fills an array (..., D, H, W) on the scan's grid with slices of the cropped grid."""

    def __init__(self, array: NDArray[np.generic], trace: Trace) -> None:
        self._target = trace.cropped_view(array)

    def _put(self, index: int, values: Tensor) -> None:
        self._target[..., index, :, :] = values.numpy()


class ProbabilityWriter(_SliceWriter):
    """Writer of the probabilities (K, H, W) of each slice, as float16."""

    def write(self, index: int, probabilities: Tensor) -> None:
        """Write the probabilities (K, H, W) of slice ``index``."""
        self._put(index, probabilities.half())


class UncertaintyWriter(_SliceWriter):
    """Writer of the entropy of each voxel's probabilities in nats: 0 if one class has all, log(K) if all are equal."""

    def write(self, index: int, probabilities: Tensor) -> None:
        """Write the entropy (H, W) of slice ``index``."""
        self._put(index, torch.special.entr(probabilities).sum(dim=0))


@contextmanager
def probability_file(path: Path, classes: int, trace: Trace) -> Iterator[ProbabilityWriter]:
    """Open a NumPy file (K, D, H, W) float16 on the scan's own grid, streamed to disk and written atomically.

    Cropped voxels have probability 1 for the background. If the slice axis is the scan's last axis (the usual case),
    the array is in Fortran order: in C order every slice would touch every page of the file.

    Args:
        path: The ``.npy`` file.
        classes: Number of classes K.
        trace: Steps from the scan's grid to the working grid.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_file(path) as file:
        order, _ = axis_order(trace.source, trace.cropped.orientation)
        shape = (classes, *trace.source.shape)
        array = open_memmap(file.name, mode="w+", dtype=np.float16, shape=shape, fortran_order=order[0] == 2)
        _reserve(file)
        if trace.cropped_view(array[0]).size < array[0].size:
            array[0] = 1  # cropped voxels are background
        yield ProbabilityWriter(array, trace)
        array.flush()
        del array


@contextmanager
def uncertainty_file(path: Path, trace: Trace) -> Iterator[UncertaintyWriter]:
    """Open a NIfTI file of the entropy (float32, nats) on the scan's own grid, written atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    with tempfile.TemporaryFile(dir=path.parent) as file:  # on disk: 4 bytes per voxel would exceed the memory limit
        try:
            array = np.memmap(file, np.float32, mode="w+", shape=trace.source.shape, order="F")
            _reserve(cast(BinaryIO, file))
        except OSError as error:
            raise OutputError("the file cannot be written", file=path, found=error.strerror or error) from error
        yield UncertaintyWriter(array, trace)
        write_map(path, array, trace.source)
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
