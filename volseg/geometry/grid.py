"""Grid: shape and float64 affine of a voxel array; spacing and orientation are derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.errors import GeometryError

FloatArray = NDArray[np.float64]
Triple = tuple[float, float, float]
FARTHEST_MM, LARGEST_VOXEL_MM = 1e5, 1e4
"""Largest coordinate of the first voxel and size of a voxel; float32, as in NIfTI, holds larger ones not to 0.01 mm."""
LEAN = 1e-4 * np.array([[0, 0, 0], [1, 0, 0], [2, 3, 0]])  # decides where an axis lies between two directions


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular voxel grid in the patient's space.

    Attributes:
        shape: Voxels along each spatial axis ``(D, H, W)``, all >= 1.
        affine: ``(4, 4)`` float64, read-only; maps voxel index ``[d, h, w, 1]`` (voxel centres at integers)
            to millimetres in RAS+ (right, anterior, superior).

    Raises:
        GeometryError: The shape is not three positive integers, or the affine is not finite and invertible, or its
            voxels are larger than 10 m or more than 100 m from the origin.
    """

    shape: tuple[int, int, int]
    affine: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        object.__setattr__(self, "affine", _checked_affine(self.affine))

    @property
    def spacing_mm(self) -> Triple:
        """Distance between neighbouring voxel centres along each axis, mm."""
        d, h, w = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return d, h, w

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def orientation(self) -> str:
        """Three letters: the anatomical direction in which each index grows, e.g. ``"LAS"``.

        An oblique or sheared grid gets the nearest permutation of the axes. It is the same for the same scan in
        every order and direction of its voxel axes.
        """
        letters = {}
        for world, axis in enumerate(_nearest_axes(self.affine)):
            letters[axis] = ("LR", "PA", "IS")[world][int(self.affine[world, axis] > 0)]
        return "".join(letters[axis] for axis in range(3))

    def to_mm(self, index: ArrayLike) -> FloatArray:
        """Map voxel indices ``(..., 3)`` to RAS+ millimetres ``(..., 3)``."""
        return np.asarray(np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3])

    def corners_mm(self) -> FloatArray:
        """Return the eight corners of the field of view, ``(8, 3)``, mm (half a voxel beyond the outermost centres)."""
        return self.to_mm(list(product(*((-0.5, n - 0.5) for n in self.shape))))

    def same_as(self, other: Grid, tolerance_mm: float = 0.01) -> bool:
        """Return whether the shapes are equal and no corner is further than ``tolerance_mm`` from its counterpart."""
        if self.shape != other.shape:
            return False
        distance_mm = np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1)
        return bool(distance_mm.max() <= tolerance_mm)

    def describe(self) -> str:
        """Return one line for messages: shape, spacing, orientation code and origin."""
        spacing = " x ".join(f"{s:.4g}" for s in self.spacing_mm)
        origin = ", ".join(f"{x:.2f}" for x in self.affine[:3, 3])
        shape = " x ".join(map(str, self.shape))
        return f"{shape} voxels of {spacing} mm, {self.orientation}, first voxel at ({origin}) mm"

    def to_dict(self) -> dict[str, Any]:
        """Return the grid as plain JSON values; ``from_dict`` restores it exactly."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """Rebuild a grid from ``to_dict``.

        Raises:
            GeometryError: A key is missing or a value is not a valid shape or affine.
        """
        try:
            return cls(values["shape"], values["affine"])
        except (KeyError, TypeError, ValueError) as error:
            raise GeometryError("this is not a stored grid", found=dict(values), expected="shape and affine") from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))


def _checked_shape(shape: Any) -> tuple[int, int, int]:
    sizes = tuple(int(n) for n in shape)
    if len(sizes) != 3 or min(sizes) < 1 or any(n != m for n, m in zip(sizes, shape, strict=True)):
        raise GeometryError("a grid needs three positive sizes", found=tuple(shape), expected="(D, H, W), each >= 1")
    return sizes


def _checked_affine(affine: ArrayLike) -> FloatArray:
    matrix = np.array(affine, np.float64) + 0.0  # a private copy; turns -0.0 into 0.0 so that equal grids hash alike
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise GeometryError("the affine is not a finite 4 x 4 matrix", found=matrix.tolist())
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise GeometryError("the last row of the affine is wrong", found=matrix[3].tolist(), expected=[0, 0, 0, 1])
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(spacing).all():
        raise GeometryError("the affine has a voxel size that is not finite", found=matrix[:3, :3].tolist())
    if spacing.min() == 0 or abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-6:
        raise GeometryError(
            "the affine is singular: it maps different voxels to the same point",
            found=matrix[:3, :3].tolist(),
            hint="write the right sform or qform into the file's header",
        )
    if np.abs(matrix[:3, 3]).max() > FARTHEST_MM or spacing.max() > LARGEST_VOXEL_MM:
        raise GeometryError(
            "the affine is far outside of any scanner's range",
            found=f"voxels of {spacing.tolist()} mm, the first at {matrix[:3, 3].tolist()} mm",
            expected=f"at most {LARGEST_VOXEL_MM:g} mm, and {FARTHEST_MM:g} mm from the origin",
            hint="write the right voxel sizes and origin into the file's header",
        )
    matrix.setflags(write=False)
    return matrix


def _nearest_axes(affine: FloatArray) -> tuple[int, ...]:
    """The voxel axes that run along R, A and S: of the six ways to pair them the one with the largest sum of cosines.

    Choosing axis by axis, as nibabel does (older versions in the file's order), would let the order of a far oblique
    scan's axes decide its orientation. At 45 degrees, where two ways are equal but for rounding, the one is taken
    whose directions lean from R to A, R to S, A to S.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)

    def nearness(order: tuple[int, ...]) -> float:
        axes = directions[:, order]
        axes = axes * np.where(axes.diagonal() < 0, -1.0, 1.0)
        return float(axes.trace() + (LEAN * axes).sum())

    return max(permutations(range(3)), key=nearness)
