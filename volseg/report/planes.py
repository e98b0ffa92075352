"""Slices of a case for its picture: selection, cropping and radiological orientation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.geometry.grid import Grid
from volseg.geometry.ops import reorient

CT_WINDOW_HU = (-160.0, 240.0)
_BLOCK_MM = 10.0  # size of the blocks in which wrong voxels are counted
_MARGIN_MM = 20.0  # shown around the organs

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class View:
    """One slice; row 0 is at the top.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``.
        image: Grey values (rows, columns), or ``None``.
        reference: Labels.
        prediction: Labels.
        extent_mm: Height and width, mm.
    """

    name: str
    image: NDArray[Any] | None
    reference: Labels
    prediction: Labels
    extent_mm: tuple[float, float]

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.extent_mm[1] / self.extent_mm[0]


@dataclass(frozen=True)
class CaseViews:
    """Axial, coronal and sagittal slice through the largest error, and the grey value range of the whole volume."""

    planes: tuple[View, View, View]
    percentiles: tuple[float, float]

    @classmethod
    def of(cls, image: NDArray[Any] | None, reference: Labels, prediction: Labels, grid: Grid) -> CaseViews:
        """Select and crop the slices.

        Args:
            image: Grey values (D, H, W), or ``None``.
            reference: Labels (D, H, W).
            prediction: Labels (D, H, W).
            grid: The grid of all three.
        """
        # Axes of SPL run upwards, backwards and to the left: slices are then cut along the axes.
        ref, ref_grid = reorient(reference, grid, "SPL")
        pred, _ = reorient(prediction, grid, "SPL")
        grey = None if image is None else reorient(image, grid, "SPL")[0]
        spacing = ref_grid.spacing_mm
        center = largest_error(ref, pred, spacing)
        box = _shown_box(ref, pred, spacing)
        planes = [
            _cut(name, axis, center[axis], (grey, ref, pred), box, spacing)
            for axis, name in enumerate(("axial", "coronal", "sagittal"))
        ]
        return cls((planes[0], planes[1], planes[2]), (0.0, 1.0) if image is None else _percentiles(image))

    def window(self, modality: str) -> tuple[float, float]:
        """Return the lowest and highest grey value: soft tissue in CT, the range of the nonzero voxels in MRI."""
        return CT_WINDOW_HU if modality == "ct" else self.percentiles


def largest_error(
    reference: Labels, prediction: Labels, spacing_mm: tuple[float, float, float]
) -> tuple[int, int, int]:
    """Return the central wrong voxel of the 10 mm block with the most wrong voxels; without errors, of organ voxels."""
    wrong: NDArray[Any] = reference != prediction
    if not wrong.any():
        wrong = reference != 0
    if not wrong.any():
        return reference.shape[0] // 2, reference.shape[1] // 2, reference.shape[2] // 2
    counts = wrong
    size = [max(1, round(_BLOCK_MM / step)) for step in spacing_mm]
    for axis, n in enumerate(size):
        counts = np.add.reduceat(counts, np.arange(0, counts.shape[axis], n), axis=axis, dtype=np.int32)
    block = np.unravel_index(int(counts.argmax()), counts.shape)
    corner = np.array([int(b) * n for b, n in zip(block, size, strict=True)])
    inside = np.argwhere(wrong[tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))])
    middle = inside[np.abs(inside - inside.mean(axis=0)).sum(axis=1).argmin()] + corner
    return int(middle[0]), int(middle[1]), int(middle[2])


def _shown_box(reference: Labels, prediction: Labels, spacing_mm: tuple[float, float, float]) -> list[slice]:
    """Return the bounding box of the organs with a margin."""
    either = (reference != 0) | (prediction != 0)
    box = []
    for axis, step in enumerate(spacing_mm):
        occupied = np.flatnonzero(either.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(_MARGIN_MM / step))
        low, high = (int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else (0, either.shape[axis])
        box.append(slice(max(0, low - margin), min(either.shape[axis], high + margin)))
    return box


def _cut(
    name: str,
    axis: int,
    index: int,
    volumes: tuple[NDArray[Any] | None, Labels, Labels],
    box: list[slice],
    spacing_mm: tuple[float, float, float],
) -> View:
    index_in_volume: list[Any] = list(box)
    index_in_volume[axis] = index
    if axis > 0:  # the first remaining axis points upwards, rows run downwards
        index_in_volume[0] = slice(box[0].stop - 1, box[0].start - 1 if box[0].start else None, -1)
    image, reference, prediction = (None if v is None else v[tuple(index_in_volume)] for v in volumes)
    assert reference is not None
    assert prediction is not None
    sizes = [(axis_box.stop - axis_box.start) * step for axis_box, step in zip(box, spacing_mm, strict=True)]
    del sizes[axis]
    return View(name, image, reference, prediction, (sizes[0], sizes[1]))


def _percentiles(image: NDArray[Any]) -> tuple[float, float]:
    """Return the 1st and 99.5th percentile of the nonzero voxels, sampled from at most two million voxels."""
    sample = image.ravel()[:: max(1, image.size // 1_000_000)]
    sample = sample[np.isfinite(sample) & (sample != 0)]
    if not sample.size:
        return 0.0, 1.0
    low, high = (float(q) for q in np.percentile(sample, [1, 99.5]))
    return low, max(high, low + 1e-6)
