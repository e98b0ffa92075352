"""Damaged NIfTI files and the functions that read scans and masks."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from trials.mutations import Generator, Mutant, damage_bytes, damage_header

SHAPE = (12, 10, 8)


class DamagedScans:
    """Mutants of NIfTI files of several types, versions and byte orders.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._images = folder, _images()

    def make(self, rng: Generator) -> Mutant:
        """Damage the header or the bytes of a scan or mask; some are compressed before, some after the damage."""
        whole, layout = self._images[int(rng.integers(len(self._images)))]
        compressed, outside = rng.random() < 0.5, rng.random() < 0.5
        data = gzip.compress(whole, 1, mtime=0) if compressed and outside else whole
        if rng.random() < 0.6 and not (compressed and outside):
            data, note = damage_header(data, layout, rng)
        else:
            data, note = damage_bytes(data, rng)
        if compressed and not outside:
            data = gzip.compress(data, 1, mtime=0)
        path = self._folder / ("mutant.nii.gz" if compressed else "mutant.nii")
        path.write_bytes(data)
        if rng.random() < 0.5:
            return Mutant("NIfTI scan", note, path, lambda: _read_scan(path, self._folder / "copy.nii.gz"))
        return Mutant("NIfTI mask", note, path, lambda: _read_mask(path))


def _read_scan(path: Path, copy: Path) -> None:
    """Read a scan, touch every voxel and write a mask with its header, which must be read back on the same grid."""
    from volseg.geometry.volume import Mask
    from volseg.io.volumes import check_image, read_grid, read_volume, write_mask

    volume = read_volume(path)
    check_image(volume, [path])
    assert volume.data.shape[1:] == volume.grid.shape, "shape of the voxels"
    write_mask(copy, Mask(np.zeros(volume.grid.shape, np.uint8), volume.grid), source=path)
    assert read_grid(copy).same_as(volume.grid), "grid of the mask"


def _read_mask(path: Path) -> None:
    from volseg.io.volumes import read_mask

    mask = read_mask(path)
    assert mask.labels.shape == mask.grid.shape, "shape of the labels"


def _images() -> list[tuple[bytes, np.dtype[Any]]]:
    """Return whole NIfTI files with the layout of their headers: types, channels, scaling, versions, byte orders."""
    rng = np.random.default_rng(0)
    files = []

    def add(values: NDArray[Any], kind: Any = nibabel.Nifti1Image, swapped: bool = False, slope: float = 1) -> None:
        header = kind.header_class(endianness=">" if swapped else "<")
        header.set_data_dtype(values.dtype)
        image = kind(values, np.diag([1.5, 1.5, 3, 1]), header)
        image.header.set_slope_inter(slope, 0)
        files.append((image.to_bytes(), image.header.structarr.dtype))

    add(rng.normal(0, 300, SHAPE).astype(np.int16))
    add(rng.normal(0, 300, SHAPE).astype(np.int16), swapped=True)
    add(rng.normal(0, 1, SHAPE).astype(np.float32), nibabel.Nifti2Image)
    add(rng.normal(0, 1, (*SHAPE, 2)).astype(np.float64))
    add(rng.integers(0, 4, SHAPE).astype(np.uint8))
    add(rng.integers(0, 4, SHAPE).astype(np.uint16), slope=2)
    return files
