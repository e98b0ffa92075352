"""Resampling to another spacing with the same field of view: images without aliasing, labels without new values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import GeometryError
from volseg.geometry.grid import Grid, Triple
from volseg.geometry.interpolate import HALF, Kind, apply_matrices, interpolation_matrix

SAME_SPACING = 1e-6  # relative: what the float32 affines of files leave uncertain
ANISOTROPY = 3.0  # an axis this much coarser than the finest is interpolated linearly, as thick slices (nnU-Net's 3)
LARGEST_ZOOM = 50.0
"""Largest ratio of two spacings along an axis. Slices of 10 mm become 0.4 mm at 25; 1,000 mm is no slice thickness."""
LARGEST_GROWTH = 100.0
"""Largest ratio of voxels after resampling to voxels before. 512 x 512 x 30 of 0.4 x 0.4 x 10 mm grow 25 times at
0.4 mm, and a volume of 4 mm grows 64 times at 1 mm."""
FREE_VOXELS = 128**3
"""A grid of this size is never too large: it is predicted in a few windows."""
TIE = 1e-5  # label shares closer than this are a tie
Matrix = NDArray[np.float64] | None
Matrices = tuple[Matrix, Matrix, Matrix]
BLOCK = 32  # output voxels per axis that labels are resampled at a time


def resampled_grid(grid: Grid, spacing_mm: Sequence[float]) -> Grid:
    """The grid with another spacing and the same field of view.

    Shape = round(extent / spacing), at least 1; the spacing is exactly the one asked for and the centres of the two
    fields of view coincide. An axis whose spacing agrees to 1e-6 already is left untouched.

    Raises:
        GeometryError: A spacing is not a positive number.
    """
    if len(spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise GeometryError("not a spacing", found=tuple(spacing_mm), expected="three positive numbers, mm")
    zoom = np.asarray(spacing_mm, np.float64) / grid.spacing_mm
    zoom[np.abs(zoom - 1) < SAME_SPACING] = 1.0
    if (zoom == 1).all():
        return grid
    shape = [max(1, int(np.floor(n / z + HALF))) for n, z in zip(grid.shape, zoom, strict=True)]
    affine = grid.affine.copy()
    affine[:3, :3] *= zoom
    centre_mm = grid.to_mm((np.asarray(grid.shape) - 1) / 2)
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine)


def check_zoom(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    *,
    case: str = "the scan",
    file: str | Path | None = None,
) -> None:
    """Check that another spacing does not make a grid absurdly large, or an axis vanish.

    A wrong voxel size in a header (1,000 mm, or metres called millimetres) would otherwise cost hours and all memory,
    or give a mask of nothing.

    Args:
        shape: Voxels (D, H, W).
        spacing_mm: Their spacing.
        target_mm: Spacing after resampling.
        case: What is resampled, for the message.
        file: Its file.

    Raises:
        GeometryError: An axis of several voxels changes its spacing by more than ``LARGEST_ZOOM``, or the voxels are
            more than ``LARGEST_GROWTH`` times as many and more than ``FREE_VOXELS``.
    """
    zooms = [spacing / target for spacing, target in zip(spacing_mm, target_mm, strict=True)]
    stored = math.prod(shape)
    resampled = math.prod(max(1.0, n * zoom) for n, zoom in zip(shape, zooms, strict=True))
    strange = any(n > 1 and not 1 / LARGEST_ZOOM <= zoom <= LARGEST_ZOOM for n, zoom in zip(shape, zooms, strict=True))
    if strange or resampled > max(FREE_VOXELS, LARGEST_GROWTH * stored):
        before, after = (" x ".join(f"{mm:.6g}" for mm in triple) for triple in (spacing_mm, target_mm))
        raise GeometryError(
            f"{case} has voxels of another order of magnitude than the plan",
            file=file,
            found=f"{stored} voxels of {before} mm, which would become {resampled:.4g} of {after} mm",
            expected=f"spacings within a factor {LARGEST_ZOOM:g}, and at most {LARGEST_GROWTH:g} times as many voxels",
            hint="correct the voxel size, or its unit, in the header of the file, or plan.spacing_mm",
        )


def image_matrices(grid: Grid, spacing_mm: Sequence[float]) -> tuple[Grid, Matrices]:
    """Return the grid with another spacing and the matrices that resample an image to it without aliasing.

    Cubic along each axis, as users of nnU-Net expect, but with a kernel that widens when downsampling; linear along
    an axis more than 3 times coarser than the finest (thick slices), where cubic would ring. An axis that keeps its
    spacing is left as it is.

    Args:
        grid: The image's grid.
        spacing_mm: Spacing of the result, mm.

    Returns:
        The grid, and for D, H and W an ``(n_out, n_in)`` matrix, or None where the axis stays as it is.
    """
    target = resampled_grid(grid, spacing_mm)
    finest = min(grid.spacing_mm) * (1 + SAME_SPACING)  # 1 x 1 x 3 mm is 3 times coarser, not more, however rounded
    kinds: list[Kind] = ["linear" if s > ANISOTROPY * finest else "cubic" for s in grid.spacing_mm]
    depth, rows, columns = _matrices(grid, target, kinds)
    return target, (depth, rows, columns)


def resample_onto(data: NDArray[Any], grid: Grid, target: Grid) -> NDArray[np.float32]:
    """Resample one channel linearly onto another grid, which may be turned; beyond the image, it has its lowest value.

    Args:
        data: ``(D, H, W)``.
        grid: Its grid.
        target: Grid of the result. Where it is coarser, voxels are picked and not averaged.

    Returns:
        ``(D', H', W')``, the target's shape.
    """
    from scipy import ndimage

    to_source = np.linalg.inv(grid.affine) @ target.affine
    padded = np.pad(data.astype(np.float32), 1, mode="edge")  # the outermost voxels extend beyond their centres
    result = ndimage.affine_transform(
        padded, to_source[:3, :3], to_source[:3, 3] + 1, target.shape, order=1, mode="constant", cval=float(data.min())
    )
    return np.asarray(result, np.float32)


def _matrices(source: Grid, target: Grid, kinds: Sequence[Kind]) -> list[Matrix]:
    """The interpolation matrix of each axis; None where it would be the identity."""
    scales = index_scales(source, target)
    return [
        None if scale == 1 and n_in == n_out else interpolation_matrix(n_in, n_out, scale, kind)
        for n_in, n_out, scale, kind in zip(source.shape, target.shape, scales, kinds, strict=True)
    ]


def index_scales(source: Grid, target: Grid) -> Triple:
    """Source voxels per target voxel; 1 exactly along axes that were left untouched."""
    equal = (source.affine[:3, :3] == target.affine[:3, :3]).all(axis=0)
    d, h, w = np.where(equal, 1.0, np.asarray(target.spacing_mm) / source.spacing_mm).tolist()
    return d, h, w


def resample_labels(data: NDArray[Any], grid: Grid, spacing_mm: Sequence[float]) -> tuple[NDArray[Any], Grid]:
    """Resample labels to another spacing; no new value appears.

    Each label's indicator is interpolated linearly (averaged over the coarser voxel when downsampling) and the
    largest wins; ties go to the lower value. It is done block by block, for the labels of the block: memory does not
    grow with their number, and blocks of one label cost nothing.

    Args:
        data: Integers ``(D, H, W)`` or ``(1, D, H, W)``.
        grid: Their grid.
        spacing_mm: Spacing of the result, mm.

    Returns:
        Labels of the same type and rank and their grid; the input itself when the spacing is the same.
    """
    target = resampled_grid(grid, spacing_mm)
    if target is grid:
        return data, grid
    if data.ndim not in (3, 4) or data.shape[:-3] not in ((), (1,)):
        raise GeometryError("labels have one channel", found=data.shape, expected=("1", *grid.shape))
    labels = data.reshape(grid.shape)
    matrices = [
        np.eye(n) if matrix is None else matrix
        for n, matrix in zip(grid.shape, _matrices(grid, target, ("linear",) * 3), strict=True)
    ]
    result = np.empty(target.shape, labels.dtype)
    for block in product(*(_blocks(matrix) for matrix in matrices)):
        rows, columns, parts = zip(*block, strict=True)
        result[rows] = _resample_block(labels[columns], parts)
    return result.reshape(*data.shape[:-3], *target.shape), target


def _blocks(matrix: NDArray[np.float64]) -> list[tuple[slice, slice, NDArray[np.float64]]]:
    """One axis in pieces: the outputs, the inputs that have weight in them, and these weights."""
    blocks = []
    for start in range(0, len(matrix), BLOCK):
        rows = slice(start, min(start + BLOCK, len(matrix)))
        used = np.flatnonzero(matrix[rows].any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((rows, columns, matrix[rows, columns]))
    return blocks


def _resample_block(labels: NDArray[Any], matrices: Sequence[NDArray[np.float64]]) -> NDArray[Any]:
    """The label with the largest interpolated indicator at each output voxel."""
    values = np.unique(labels)
    result = np.full([len(matrix) for matrix in matrices], values[0], labels.dtype)
    if len(values) == 1:
        return result
    best = np.zeros(result.shape, np.float32)
    for value in values:
        share = apply_matrices((labels == value)[None], matrices)[0]
        won = share > best + TIE
        result[won] = value
        best[won] = share[won]
    return result
