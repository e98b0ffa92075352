"""Pure operations on voxels and their grid: (array, Grid) in, (array, Grid) out.

Arrays are ``(C, D, H, W)``. Reorienting and cropping return views; nothing here changes its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import GeometryError
from volseg.geometry.grid import Grid
from volseg.geometry.interpolate import interpolation_matrix
from volseg.geometry.resample import index_scales, resample_labels, resampled_grid
from volseg.geometry.volume import LARGEST_LABEL

__all__ = [
    "axis_order",
    "crop",
    "in_order_of",
    "index_scales",
    "interpolation_matrix",
    "label_boxes",
    "missing_voxels",
    "nonzero_box",
    "pad_to_size",
    "permute_and_flip",
    "reorient",
    "resample_labels",
    "resampled_grid",
]

Ints = tuple[int, int, int]
Box = tuple[slice, slice, slice]


def axis_order(grid: Grid, codes: str) -> tuple[Ints, tuple[bool, bool, bool]]:
    """Return how to permute and flip a grid's axes so that its orientation becomes ``codes``.

    Args:
        grid: The grid as it is.
        codes: Three letters, one of each pair R/L, A/P, S/I, e.g. ``"SPL"``.

    Returns:
        For each new axis the old axis it comes from, and whether it is reversed.

    Raises:
        GeometryError: ``codes`` is not an orientation.
    """
    if len(codes) != 3 or any(len(pair & set(codes)) != 1 for pair in (set("RL"), set("AP"), set("SI"))):
        raise GeometryError("not an orientation", found=codes, expected="one each of R/L, A/P and S/I, as in RAS")
    line = {code: name for name in ("RL", "AP", "SI") for code in name}
    old = {line[code]: (axis, code) for axis, code in enumerate(grid.orientation)}
    (d, flip_d), (h, flip_h), (w, flip_w) = ((old[line[code]][0], old[line[code]][1] != code) for code in codes)
    return (d, h, w), (flip_d, flip_h, flip_w)


def permute_and_flip(data: NDArray[Any], order: Sequence[int], flips: Sequence[bool]) -> NDArray[Any]:
    """Reorder the last three axes of ``(..., D, H, W)``, then reverse those flagged (a view)."""
    lead = data.ndim - 3
    data = data.transpose(*range(lead), *(lead + axis for axis in order))
    index: tuple[Any, ...] = (..., *(slice(None, None, -1 if flip else None) for flip in flips))
    return np.asarray(data[index])


def reorient(data: NDArray[Any], grid: Grid, codes: str) -> tuple[NDArray[Any], Grid]:
    """Permute and flips the axes so that they run in the directions ``codes``, e.g. ``"SPL"``. No interpolation.

    Raises:
        GeometryError: ``codes`` is not an orientation.
    """
    order, flips = axis_order(grid, codes)
    shape = [grid.shape[axis] for axis in order]
    to_old = np.zeros((4, 4))  # maps the new index to the old one
    to_old[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        to_old[old, new] = -1 if flip else 1
        to_old[old, 3] = shape[new] - 1 if flip else 0
    return permute_and_flip(data, order, flips), Grid((shape[0], shape[1], shape[2]), grid.affine @ to_old)


def in_order_of(data: NDArray[Any], grid: Grid, target: Grid, tolerance_mm: float = 0.01) -> tuple[NDArray[Any], Grid]:
    """Permute and flip ``(C, D, H, W)`` to another grid that has the same voxels in another order. No interpolation.

    Args:
        data: The voxels.
        grid: Their grid.
        target: The other grid.
        tolerance_mm: Largest distance of corresponding corners.

    Returns:
        The voxels in the target's order (a view) and their grid; unchanged if the grids have different voxels.
    """
    if grid.same_as(target, tolerance_mm):
        return data, grid
    reordered, new = reorient(data, grid, target.orientation)
    return (reordered, new) if new.same_as(target, tolerance_mm) else (data, grid)


def crop(data: NDArray[Any], grid: Grid, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], Grid]:
    """Keep the voxels ``start <= index < stop`` of each spatial axis (a view).

    Raises:
        GeometryError: The box is empty or leaves the grid.
    """
    if any(not 0 <= a < b <= n for a, b, n in zip(start, stop, grid.shape, strict=True)):
        raise GeometryError("the crop is empty or leaves the grid", found=(*start, *stop), expected=grid.shape)
    box: tuple[Any, ...] = (..., *(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)))
    return np.asarray(data[box]), _shifted(grid, start, [b - a for a, b in zip(start, stop, strict=True)])


def _shifted(grid: Grid, start: Sequence[int], shape: Sequence[int]) -> Grid:
    """The grid whose first voxel is the voxel ``start`` of ``grid``."""
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_mm(start)
    return Grid((shape[0], shape[1], shape[2]), affine)


def pad_to_size(data: NDArray[Any], size: Sequence[int], value: float = 0) -> tuple[NDArray[Any], Ints]:
    """Pad symmetrically until every spatial axis is at least ``size`` long; larger axes stay as they are.

    Training patches, the sliding window and the tests share this one function, so that a small volume looks the
    same to the network everywhere.

    Args:
        data: ``(..., D, H, W)``.
        size: Smallest D, H and W.
        value: What the new voxels hold.

    Returns:
        The padded array (the input itself when nothing is missing) and the voxels added before each axis,
        half of those missing, rounded down.
    """
    before, after = missing_voxels(data.shape[-3:], size)
    if not any((*before, *after)):
        return data, before
    widths = [(0, 0)] * (data.ndim - 3) + list(zip(before, after, strict=True))
    return np.pad(data, widths, constant_values=value), before


def missing_voxels(shape: Sequence[int], size: Sequence[int]) -> tuple[Ints, Ints]:
    """Return how many voxels `pad_to_size` adds before (half, rounded down) and after each of three axes."""
    d, h, w = (max(0, s - n) for s, n in zip(size, shape, strict=True))
    before = (d // 2, h // 2, w // 2)
    return before, (d - before[0], h - before[1], w - before[2])


def nonzero_box(data: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return first and past-the-last voxel, along each axis of (C, D, H, W), of what is nonzero in a channel."""
    shape = data.shape[1:]
    occupied = [np.zeros(size, dtype=bool) for size in shape]
    for index in range(shape[0]):  # slice by slice: a mask of a whole-body scan would double its memory
        plane = (data[:, index] != 0).any(axis=0)
        occupied[0][index] = plane.any()
        occupied[1] |= plane.any(axis=1)
        occupied[2] |= plane.any(axis=0)
    if not occupied[0].any():
        return (0, 0, 0), shape
    found = [np.flatnonzero(axis) for axis in occupied]
    return tuple(int(axis[0]) for axis in found), tuple(int(axis[-1]) + 1 for axis in found)


def label_boxes(labels: NDArray[Any], values: Iterable[int]) -> dict[int, Box]:
    """Return the bounding box of each of some positive values that occurs in labels (D, H, W).

    Values above ``LARGEST_LABEL``, which no mask from a file holds, are looked for one by one, because scipy's table
    of boxes is as long as the largest value.
    """
    from scipy import ndimage  # imported where it is used: most predictions need none of it

    wanted = {int(value) for value in values if value > 0}
    small = [value for value in wanted if value <= LARGEST_LABEL]
    found = ndimage.find_objects(labels, max_label=max(small)) if small else []
    boxes = {value: found[value - 1] for value in small}
    for value in wanted.difference(small):
        boxes[value] = next(iter(ndimage.find_objects((labels == value).view(np.uint8))), None)
    return {value: box for value, box in boxes.items() if box is not None}
