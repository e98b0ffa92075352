"""Training patches cut from preprocessed volumes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volseg.geometry.ops import pad_to_size
from volseg.planning.plan import Plan


class PatchSource(Protocol):
    """A case from which patches are cut, cached or in memory."""

    @property
    def id(self) -> str:
        """Name of the case."""

    @property
    def image(self) -> NDArray[np.float32]:
        """(C, D, H, W) float32."""

    @property
    def label(self) -> NDArray[Any]:
        """(D, H, W) class indices."""

    @property
    def locations(self) -> NDArray[np.int32]:
        """(N, 4): class index and voxel (d, h, w)."""


def sample_patch(
    case: PatchSource, plan: Plan, rng: np.random.Generator, foreground_fraction: float, halo: int = 0
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Cut a random patch.

    Args:
        case: The case.
        plan: Gives the patch size (D, H, W).
        rng: Random generator.
        foreground_fraction: Fraction of patches centred on a voxel of a random foreground class; the others are
            uniformly distributed.
        halo: Neighbour slices kept before and after the patch along D.

    Returns:
        Image (C, D + 2 halo, H, W) and label (D + 2 halo, H, W), as :func:`cut` gives them.
    """
    start = patch_start(case.label.shape, plan.patch_size, rng, center_voxel(case, rng, foreground_fraction))
    return cut(case.image, start, plan.patch_size, halo), cut(case.label, start, plan.patch_size, halo)


def patch_start(
    shape: Sequence[int],
    size: Sequence[int],
    rng: np.random.Generator,
    center: Sequence[int] | NDArray[np.int32] | None,
) -> tuple[int, int, int]:
    """Return the first voxel of a patch in the volume padded to ``size``: around ``center``, or uniformly drawn."""
    start = []
    for axis in range(3):
        last = max(shape[axis] - size[axis], 0)
        if center is None:
            start.append(int(rng.integers(last + 1)))
        else:
            start.append(min(max(int(center[axis]) - size[axis] // 2, 0), last))
    return start[0], start[1], start[2]


def cut(array: NDArray[Any], start: Sequence[int], size: Sequence[int], halo: int = 0) -> NDArray[Any]:
    """Cut a patch with its neighbour slices; only the voxels of the patch are read.

    A volume smaller than the patch is padded with 0 by :func:`~volseg.geometry.ops.pad_to_size`, as the engine does.
    Neighbour slices come from the padded volume and are replicated only at its ends.

    Args:
        array: (..., D, H, W).
        start: First voxel of the patch, in the padded volume.
        size: Patch size (D, H, W).
        halo: Neighbour slices on each side along D.

    Returns:
        (..., size[0] + 2 halo, size[1], size[2]), a copy.
    """
    depth = max(array.shape[-3], size[0])
    first, last = start[0] - halo, start[0] + size[0] + halo
    inside = slice(max(first, 0), min(last, depth))
    rows, columns = (slice(begin, begin + length) for begin, length in zip(start[1:], size[1:], strict=True))
    patch, _ = pad_to_size(array[..., inside, rows, columns], size)
    widths = [(0, 0)] * (array.ndim - 3) + [(inside.start - first, last - inside.stop), (0, 0), (0, 0)]
    return np.pad(patch, widths, mode="edge")


def center_voxel(case: PatchSource, rng: np.random.Generator, foreground_fraction: float) -> NDArray[np.int32] | None:
    """Draw a voxel of a random foreground class of the case; ``None`` for a patch anywhere."""
    on_foreground = rng.random() < foreground_fraction
    rows = class_rows(case.locations) if on_foreground else []
    if not rows:
        return None
    class_range = rows[int(rng.integers(len(rows)))]
    voxel: NDArray[np.int32] = case.locations[int(rng.integers(class_range.start, class_range.stop)), 1:]
    return voxel


def class_rows(locations: NDArray[np.int32]) -> list[range]:
    """Return the rows of each class in a table sorted by class; bisection reads few of them."""
    column, rows = locations[:, 0], list[range]()
    while (first := rows[-1].stop if rows else 0) < len(column):
        rows.append(range(first, bisect_right(column, column[first])))
    return rows
