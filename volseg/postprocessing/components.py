"""Connected components of a box, a slab at a time: memory follows the slab, not the scan.

Each slab is labelled on its own; components that touch across the border of two slabs are then made one. To find the
voxels of some components, their slabs are labelled again, which gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SLAB_VOXELS = 1 << 22
"""Voxels that are labelled at a time; about 20 bytes are held for each."""

Inside = Callable[[slice], NDArray[np.bool_]]
"""Slices of the first axis -> which of their voxels (d, H, W) belong to a component."""
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """The components of a box.

    Attributes:
        sizes_vox: (N,) voxels of each component.
        enclosed: (N,) whether a component stays off the box's surface.
    """

    sizes_vox: Numbers
    enclosed: NDArray[np.bool_]
    _inside: Inside
    _structure: NDArray[np.bool_]
    _slabs: tuple[tuple[slice, Numbers], ...]  # with the component of each number that labelling gives there

    def voxels(self, chosen: NDArray[np.bool_]) -> Iterator[tuple[slice, Numbers]]:
        """Where some of the components are; slabs without any are skipped.

        Args:
            chosen: (N,) which components.

        Yields:
            A slab, and for its voxels (d, H, W) the component's index + 1, or 0 where none of the chosen is.
        """
        for slab, component in self._slabs:
            wanted = chosen[component]
            if wanted.any():
                number, _ = _label(self._inside(slab), self._structure)
                yield slab, np.append(0, np.where(wanted, component + 1, 0))[number]


def find_components(inside: Inside, shape: tuple[int, ...], connectivity: Literal[6, 26]) -> Components:
    """Find the connected components of a box.

    Args:
        inside: The box's voxels, slices at a time.
        shape: (D, H, W) of the box.
        connectivity: 6 joins voxels that share a face, 26 also those that share an edge or a corner.
    """
    from scipy.sparse import coo_matrix  # imported where it is used: most predictions need none of it
    from scipy.sparse.csgraph import connected_components

    cube = np.indices((3, 3, 3)) - 1
    structure = np.abs(cube).sum(axis=0) <= (1 if connectivity == 6 else 3)
    step = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    total, slabs, sizes, at_surface, pairs = 0, [], [], [], [np.empty((0, 2), np.int64)]
    last = np.zeros(shape[1:], np.int64)
    for start in range(0, shape[0], step):
        slab = slice(start, min(start + step, shape[0]))
        number, count = _label(inside(slab), structure)
        sizes.append(np.bincount(number.ravel(), minlength=count + 1)[1:])
        at_surface.append(_at_surface(number, count, first=start == 0, last=slab.stop == shape[0]))
        pairs.append(_touching(last, np.where(number[0], number[0] + total, 0), structure[0]))
        last = np.where(number[-1], number[-1] + total, 0)
        slabs.append((slab, count))
        total += count
    first, second = np.concatenate(pairs).T - 1
    graph = coo_matrix((np.ones(len(first), np.bool_), (first, second)), (total, total))
    found, component = connected_components(graph, directed=False) if total else (0, np.empty(0, np.int64))
    enclosed = np.ones(found, np.bool_)
    enclosed[component[np.concatenate(at_surface)]] = False
    sizes_vox = np.zeros(found, np.int64)
    np.add.at(sizes_vox, component, np.concatenate(sizes))
    parts = np.split(component.astype(np.int64), np.cumsum([count for _, count in slabs])[:-1])
    return Components(sizes_vox, enclosed, inside, structure, tuple(zip((s for s, _ in slabs), parts, strict=True)))


def _label(inside: NDArray[np.bool_], structure: NDArray[np.bool_]) -> tuple[Numbers, int]:
    """(d, H, W) numbers from 1 on, 0 outside, and how many there are."""
    from scipy import ndimage

    number, count = ndimage.label(inside, structure)
    return number, int(count)


def _at_surface(number: Numbers, count: int, *, first: bool, last: bool) -> NDArray[np.bool_]:
    """(count,) which numbers of a slab occur on the surface of the box."""
    faces = [number[:, 0], number[:, -1], number[:, :, 0], number[:, :, -1]]
    faces += [number[0]] * first + [number[-1]] * last
    occurs = np.zeros(count + 1, np.bool_)
    for face in faces:
        occurs[face] = True
    return occurs[1:]


def _touching(before: Numbers, after: Numbers, across: NDArray[np.bool_]) -> Numbers:
    """(M, 2) numbers of two slices (H, W), one upon the other, whose voxels are neighbours.

    Args:
        before: Numbers of one slice, 0 outside.
        after: Numbers of the next.
        across: (3, 3) which places of the slice before are neighbours of a voxel.
    """
    rows, columns = after.shape
    padded = np.pad(before, 1)
    pairs = []
    for row, column in np.argwhere(across):
        neighbour = padded[row : row + rows, column : column + columns]
        both = (neighbour > 0) & (after > 0)
        pairs.append(np.unique(np.stack([neighbour[both], after[both]], axis=1), axis=0))
    return np.concatenate(pairs)
