"""Areas of surface elements (surfels), the pieces of surface inside cubes of 2x2x2 neighbouring voxels.

A cube's code has one bit per voxel: ``128 >> (4 a + 2 b + c)`` for the voxel at offset ``(a, b, c)``. Marching cubes
cuts the cube into triangles; the metrics need only the sum of their areas.

Source: the triangles are those of DeepMind's ``surface-distance`` 0.1, ``lookup_tables.py`` (Copyright 2018 Google
Inc., Apache-2.0; https://github.com/google-deepmind/surface-distance), here counted per direction of their normals:
the 256 codes have only 27 different counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CODE_BITS = 128 >> np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
"""Bit of each voxel of a cube, indexed by its offset (0 or 1 along each axis)."""

# Normals of the triangles at unit spacing, in eighths; an area does not depend on their signs.
_NORMALS = np.array([(1, 1, 1), (2, 2, 0), (2, 0, 2), (0, 2, 2), (4, 0, 0), (0, 4, 0), (0, 0, 4)]) / 8

# Number of triangles with each of the seven normals, per kind of cube.
_COUNTS = {
    ".": (0, 0, 0, 0, 0, 0, 0),
    "A": (1, 0, 0, 0, 0, 0, 0),
    "B": (0, 2, 0, 0, 0, 0, 0),
    "C": (0, 0, 2, 0, 0, 0, 0),
    "D": (2, 0, 0, 0, 0, 0, 0),
    "E": (3, 0, 0, 0, 1, 0, 0),
    "F": (0, 0, 0, 0, 2, 0, 0),
    "G": (0, 0, 0, 2, 0, 0, 0),
    "H": (3, 0, 0, 0, 0, 1, 0),
    "I": (3, 0, 0, 0, 0, 0, 1),
    "J": (3, 0, 0, 0, 0, 0, 0),
    "K": (6, 0, 0, 0, 0, 0, 0),
    "L": (1, 0, 0, 2, 0, 0, 0),
    "M": (1, 0, 2, 0, 0, 0, 0),
    "N": (4, 0, 1, 1, 0, 0, 0),
    "O": (1, 2, 0, 0, 0, 0, 0),
    "P": (4, 1, 0, 1, 0, 0, 0),
    "Q": (4, 0, 0, 0, 1, 0, 0),
    "R": (0, 0, 0, 0, 0, 2, 0),
    "S": (4, 1, 1, 0, 0, 0, 0),
    "T": (4, 0, 0, 0, 0, 1, 0),
    "U": (0, 4, 0, 0, 0, 0, 0),
    "V": (0, 0, 0, 0, 0, 0, 2),
    "W": (4, 0, 0, 0, 0, 0, 1),
    "X": (0, 0, 4, 0, 0, 0, 0),
    "Y": (0, 0, 0, 4, 0, 0, 0),
    "Z": (4, 0, 0, 0, 0, 0, 0),
}

# Kind of the codes 0 to 127; a cube and its complement (code 255 - c) have the same surface.
_KINDS = (
    ".AABACDEADCEBEEFAGDHDIJKDLMNOPQEADGHDMLNDJIKOQPEBHHROSTHOTSHUOOB"
    "ADDOGILPDJMQHKNECIMSIVWIMWXMSIMCDJLTLWYLJZWJTJLDEKNHPILGQJMDODDA"
)


def surfel_areas_mm2(spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Compute the surface area inside a cube for each of the 256 codes.

    Args:
        spacing_mm: Voxel size along the three axes.

    Returns:
        Areas in mm^2, shape (256,).
    """
    a, b, c = spacing_mm
    lengths = np.linalg.norm(_NORMALS * np.array([b * c, a * c, a * b]), axis=1)
    half = np.array([np.dot(_COUNTS[kind], lengths) for kind in _KINDS])
    return np.concatenate([half, half[::-1]])
