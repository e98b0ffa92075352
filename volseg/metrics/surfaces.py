"""Border voxels and surfels of all classes of a label map, extracted in one pass.

A border voxel has one of its six neighbours outside its class; voxels outside the image belong to no class. A surfel is
a cube of 2x2x2 voxels of which some, not all, belong to the class. Both lie where neighbouring labels differ. The pass
compares neighbours slab by slab, so its cost does not depend on the number of classes. The cost of all later steps
depends on the area of the surfaces only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from volseg.metrics.surfels import CODE_BITS

Labels = NDArray[np.integer]
SLAB_VOXELS = 1_000_000  # voxels processed at once: small enough for the processor's cache
_CORNERS = list(product((0, 1), repeat=3))


@dataclass(frozen=True)
class Surface:
    """Border of one class.

    Attributes:
        voxels: Indices of the border voxels, shape (n, 3).
        surfels: Indices of the cubes; cube (d, h, w) joins voxels (d-1, h-1, w-1) and (d, h, w). Shape (m, 3).
        codes: Which of a cube's voxels belong to the class, uint8 (m,); bits as in ``surfels.CODE_BITS``.
    """

    voxels: NDArray[np.int32]
    surfels: NDArray[np.int32]
    codes: NDArray[np.uint8]


NO_SURFACE = Surface(np.zeros((0, 3), np.int32), np.zeros((0, 3), np.int32), np.zeros(0, np.uint8))


def find_borders(labels: Labels, ignore: int | None = None) -> dict[int, Surface]:
    """Find the borders of all classes, ignoring faces along axes of one voxel.

    In a volume of one slice the border of a class is a contour: faces towards the missing neighbour slices would make
    every voxel a border voxel. The slice is therefore repeated on both sides, and the borders of the middle slice are
    kept. The areas of its surfels are proportional to the length of the contour.

    Args:
        labels: As in :func:`find_surfaces`.
        ignore: As in :func:`find_surfaces`.

    Returns:
        Label value -> its surface; equal to :func:`find_surfaces` where no axis, or every axis, has one voxel.
    """
    single = [axis for axis, size in enumerate(labels.shape) if size == 1]
    if not single or len(single) == labels.ndim:
        return find_surfaces(labels, ignore)
    for axis in single:
        labels = np.repeat(labels, 3, axis=axis)
    surfaces = {}
    for value, surface in find_surfaces(labels, ignore).items():
        middle_voxels = (surface.voxels[:, single] == 1).all(axis=1)
        middle_surfels = (surface.surfels[:, single] == 1).all(axis=1)
        voxels, surfels = surface.voxels[middle_voxels], surface.surfels[middle_surfels]
        voxels[:, single] = surfels[:, single] = 0
        if len(voxels) or len(surfels):
            surfaces[value] = Surface(voxels, surfels, surface.codes[middle_surfels])
    return surfaces


def find_surfaces(labels: Labels, ignore: int | None = None) -> dict[int, Surface]:
    """Find the borders of all classes of a label map.

    Args:
        labels: Non-negative label values, shape (D, H, W); 0 is background. Fast for C and for Fortran order.
        ignore: Value of ignored voxels: a face towards such a voxel is no border.

    Returns:
        Label value -> its surface, for the values with a border voxel or surfel.
    """
    fortran = labels.flags.f_contiguous and not labels.flags.c_contiguous
    bits = CODE_BITS.T if fortran else CODE_BITS
    pieces = list(_slabs(labels.T if fortran else labels, bits, ignore))
    if not pieces:
        return {}
    voxels, voxel_labels, cubes, cube_labels, codes = (np.concatenate(part) for part in zip(*pieces, strict=True))
    if fortran:
        voxels, cubes = voxels[:, ::-1], cubes[:, ::-1]
    voxel_order, voxel_parts = _group(voxel_labels)
    cube_order, cube_parts = _group(cube_labels)
    voxels, cubes, codes = voxels[voxel_order], cubes[cube_order], codes[cube_order]
    surfaces = {}
    for value in sorted(voxel_parts.keys() | cube_parts.keys()):  # next to ignored voxels one kind may be absent
        voxel_part, cube_part = voxel_parts.get(value, slice(0, 0)), cube_parts.get(value, slice(0, 0))
        surfaces[value] = Surface(voxels[voxel_part], cubes[cube_part], codes[cube_part])
    return surfaces


def _group(values: Labels) -> tuple[NDArray[np.intp], dict[int, slice]]:
    """Return a stable order that groups equal values, and the slice of each value in this order."""
    order = np.argsort(values, kind="stable")
    distinct, starts = np.unique(values[order], return_index=True)
    stops = np.append(starts, len(values))[1:]
    return order, {int(v): slice(int(a), int(b)) for v, a, b in zip(distinct, starts, stops, strict=True)}


def _slabs(labels: Labels, bits: Labels, ignore: int | None) -> Iterator[tuple[NDArray[np.generic], ...]]:
    """Yield the border voxels and surfels of each slab of slices, with their labels and codes."""
    depth, height, width = labels.shape
    step = max(1, SLAB_VOXELS // (height * width))
    for start in range(0, depth + 1, step):  # cubes reach one beyond the last slice
        count = min(step, depth + 1 - start)
        slab = np.zeros((count + 2, height + 2, width + 2), labels.dtype)  # one voxel of background on every side
        first, last = max(start - 1, 0), min(start + count + 1, depth)
        slab[first - start + 1 : last - start + 1, 1:-1, 1:-1] = labels[first:last]
        if slab.any():
            shift = np.array([start, 0, 0])
            border, mixed = _differences(slab, ignore)
            voxels = np.flatnonzero(border)
            inner = slab[1:-1, 1:-1, 1:-1]
            voxel_index = np.stack(np.unravel_index(voxels, border.shape), axis=-1)
            cube_index, cube_labels, codes = _surfels(slab, mixed, bits, ignore)
            yield (
                (voxel_index + shift).astype(np.int32),
                inner[tuple(voxel_index.T)],
                (cube_index + shift).astype(np.int32),
                cube_labels,
                codes,
            )


def _differences(slab: Labels, ignore: int | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find inner voxels with a neighbour of another label, and cubes with more than one label.

    Args:
        slab: Labels padded by one voxel on every side, shape (n + 2, h + 2, w + 2).
        ignore: Label of ignored voxels, which have no border.

    Returns:
        Border voxels (n, h, w) and mixed cubes (n, h + 1, w + 1); cube i lies between the slab's slices i and i + 1.
    """
    a, b, c = slab[1:] != slab[:-1], slab[:, 1:] != slab[:, :-1], slab[:, :, 1:] != slab[:, :, :-1]
    # A cube is mixed if one of 7 edges that connect its 8 voxels (a spanning tree of the 12) joins two labels.
    mixed = c[:-2, :-1] | c[:-2, 1:]
    mixed |= c[1:-1, :-1]
    mixed |= c[1:-1, 1:]
    mixed |= b[:-2, :, :-1]
    mixed |= b[1:-1, :, :-1]
    mixed |= a[:-1, :-1, :-1]
    if ignore is not None:
        annotated = slab != ignore
        a &= annotated[1:] & annotated[:-1]
        b &= annotated[:, 1:] & annotated[:, :-1]
        c &= annotated[:, :, 1:] & annotated[:, :, :-1]
    inner = slice(1, -1)
    border = a[:-1, inner, inner] | a[1:, inner, inner]
    border |= b[inner, :-1, inner]
    border |= b[inner, 1:, inner]
    border |= c[inner, inner, :-1]
    border |= c[inner, inner, 1:]
    border &= slab[inner, inner, inner] != 0
    return border, mixed


def _surfels(
    slab: Labels, mixed: NDArray[np.bool_], bits: Labels, ignore: int | None
) -> tuple[NDArray[np.intp], Labels, NDArray[np.uint8]]:
    """Return index, label and code of every surfel in the mixed cubes; a cube has one surfel per label."""
    cubes = np.stack(np.unravel_index(np.flatnonzero(mixed), mixed.shape), axis=-1)
    _, height, width = slab.shape
    strides = np.array([height * width, width, 1])
    flat = cubes @ strides
    corners = np.stack([slab.reshape(-1)[flat + int(strides @ corner)] for corner in _CORNERS])  # (8, n)
    annotated = np.ones(len(flat), bool) if ignore is None else (corners != ignore).all(axis=0)
    indices, labels, codes = [], [], []
    for k, corner in enumerate(corners):
        # Each label of a cube is handled at the first corner that has it.
        first = annotated & (corner != 0)
        for earlier in corners[:k]:
            first &= corner != earlier
        selected = np.flatnonzero(first)
        same = corners[:, selected] == corner[selected]  # (8, n selected)
        indices.append(cubes[selected])
        labels.append(corner[selected])
        codes.append((same * bits.reshape(8, 1)).sum(axis=0, dtype=np.uint8))
    return np.concatenate(indices), np.concatenate(labels), np.concatenate(codes)
