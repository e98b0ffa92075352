"""Scans whose voxels know where they are: the oracle of every geometric operation."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from scipy.spatial.transform import Rotation

from volseg.geometry.grid import Grid

CODES = tuple(
    "".join(signs) for axes in permutations(("RL", "AP", "SI")) for signs in product(*axes)
)  # all 48 orders and directions of the axes


def affine_of(codes: str, spacing_mm=(1.0, 1.0, 1.0), angles_deg=(0.0, 0.0, 0.0), origin_mm=(-7.0, 11.0, 3.0)):
    """An affine whose axes run as ``codes`` say, then turned by ``angles_deg``."""
    axes = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        world = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        axes[world, axis] = 1 if code in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() @ axes @ np.diag(spacing_mm)
    affine[:3, 3] = origin_mm
    return affine


def positions(grid: Grid) -> np.ndarray:
    """An image ``(3, D, H, W)`` that holds at each voxel its own place in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return np.moveaxis(grid.to_mm(index), -1, 0)
