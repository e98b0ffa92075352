"""The prepared volume, one slab of slices at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volseg.inference.sliding.windows import Layout, Size
from volseg.inference.timing import StageTimer
from volseg.preprocessing.preprocess import PreparedImage


class Slabs(Protocol):
    """An image on the plan's grid that is prepared slab by slab."""

    @property
    def shape(self) -> Size:
        """Return the size in voxels (D, H, W)."""

    def slab(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the slices ``start <= d < stop``: (C, stop - start, H, W), normalised."""

    def is_air(self, start: Size, stop: Size) -> bool:
        """Return whether all voxels of the box from ``start`` to before ``stop`` are certainly air."""


@dataclass(frozen=True)
class ArraySlabs:
    """An image in memory: (C, D, H, W) float32. No part of it counts as air."""

    image: NDArray[np.float32]

    @property
    def shape(self) -> Size:
        """Return the size in voxels (D, H, W)."""
        _, depth, height, width = self.image.shape
        return depth, height, width

    def slab(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the slices ``start <= d < stop``."""
        return self.image[:, start:stop]

    def is_air(self, start: Size, stop: Size) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True)
class ScanSlabs:
    """A scan that is prepared slab by slab.

    Attributes:
        image: The scan and the steps that prepare it.
        air_below: A window is air if all its stored values are below this; ``None``: no window is air.
        timer: Measures the preparation as stage ``prepare``.
    """

    image: PreparedImage
    air_below: float | None = None
    timer: StageTimer = field(default_factory=StageTimer)

    @property
    def shape(self) -> Size:
        """Return the size of the working grid in voxels (D, H, W)."""
        return self.image.shape

    def slab(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the slices ``start <= d < stop`` of the working grid."""
        with self.timer.stage("prepare"):
            return self.image.slab(start, stop)

    def is_air(self, start: Size, stop: Size) -> bool:
        """Return whether every stored voxel that these working voxels are interpolated from is below the threshold."""
        if self.air_below is None:
            return False
        ranges = (self.image.stored_range(axis, a, b) for axis, (a, b) in enumerate(zip(start, stop, strict=True)))
        box = self.image.stored[(slice(None), *(slice(low, high) for low, high in ranges))]
        return all(bool(plane.max() < self.air_below) for channel in box for plane in channel)


class PaddedSlabs:
    """Slabs of the padded volume with their neighbouring slices; every slice is prepared once.

    Volumes smaller than a window are padded with zeros. Beyond the ends of the padded volume its end slices are
    repeated, as in training.

    Args:
        image: The prepared volume.
        layout: Its windows and padding.
        halo: Neighbouring slices on each side.
    """

    def __init__(self, image: Slabs, layout: Layout, halo: int) -> None:
        self._image, self._layout, self._halo = image, layout, halo
        self._first = 0
        self._held: Tensor | None = None

    def slab(self, start: int, stop: int) -> Tensor:
        """Return (C, stop - start + 2 * halo, H, W) of the padded volume; slabs are requested in ascending order."""
        halo = self._halo
        low, high = max(0, start - halo), min(self._layout.padded[0], stop + halo)
        if self._held is None:
            self._held = self._padded(low, high)
        else:
            end, kept = self._first + self._held.shape[1], self._held[:, low - self._first :]
            self._held = torch.cat([kept, self._padded(end, high)], dim=1) if end < high else kept
        self._first = low
        if (low, high) == (start - halo, stop + halo):
            return self._held
        return self._held[:, torch.arange(start - halo, stop + halo).clamp(low, high - 1) - low]

    def _padded(self, start: int, stop: int) -> Tensor:
        """Return (C, stop - start, H, W) of the padded volume."""
        (before, *plane), size, padded = self._layout.before, self._layout.size, self._layout.padded
        low, high = max(0, start - before), min(size[0], stop - before)
        slab = self._image.slab(low, high)
        widths = [(0, 0), (low + before - start, stop - before - high)]
        widths += [(b, n - b - m) for b, m, n in zip(plane, size[1:], padded[1:], strict=True)]
        return torch.from_numpy(np.ascontiguousarray(np.pad(slab, widths) if any(map(any, widths)) else slab))
