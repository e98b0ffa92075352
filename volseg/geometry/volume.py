"""Voxels with the grid they lie on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from volseg.errors import GeometryError
from volseg.geometry.grid import Grid

LARGEST_LABEL = 65535
"""Largest value of a class in a mask that is scored."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image of one or more channels.

    Attributes:
        data: ``(C, D, H, W)`` in the stored type; converted to float32 where that is needed, slab by slab.
        grid: Where the voxels are.

    Raises:
        GeometryError: The array does not have four axes, or its spatial axes are not the grid's.
    """

    data: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[1:] != self.grid.shape:
            expected = ("C", *self.grid.shape)
            raise GeometryError("the image does not fit its grid", found=self.data.shape, expected=expected)


@dataclass(frozen=True, eq=False)
class Mask:
    """A label for every voxel.

    Attributes:
        labels: Integers ``(D, H, W)``.
        grid: Where the voxels are.

    Raises:
        GeometryError: The array is not integer, or its shape is not the grid's.
    """

    labels: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.labels.dtype.kind not in "iub":
            raise GeometryError("a mask holds integers", found=self.labels.dtype, expected="an integer type")
        if self.labels.shape != self.grid.shape:
            raise GeometryError("the mask does not fit its grid", found=self.labels.shape, expected=self.grid.shape)
