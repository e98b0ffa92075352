"""The input of every metric: one class in the prediction and the reference of a case."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from volseg.metrics.nearest import nearest_distances_mm
from volseg.metrics.surfaces import Surface

HdMode = Literal["max", "pooled", "surfel"]
HD_MODES: tuple[str, ...] = get_args(HdMode)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClassPair:
    """One class in prediction and reference; distances are computed once, on first use.

    Attributes:
        pred_voxels: Voxels of the class in the prediction.
        ref_voxels: Voxels of the class in the reference.
        both_voxels: Voxels of the class in both.
        pred: Predicted surface.
        ref: Reference surface.
        spacing_mm: Voxel size along the three axes.
        areas_mm2: Area of each surfel code, shape (256,).
        diagonal_mm: Distance assigned when one of the surfaces is empty.
        hd_mode: Definition of the Hausdorff distances: elements and percentile.
        tolerance_mm: Distance up to which surfels agree.
    """

    pred_voxels: int
    ref_voxels: int
    both_voxels: int
    pred: Surface
    ref: Surface
    spacing_mm: tuple[float, float, float]
    areas_mm2: Array
    diagonal_mm: float
    hd_mode: HdMode = "max"
    tolerance_mm: float = 1.0

    @property
    def voxels(self) -> tuple[int, int]:
        """Number of voxels in prediction and reference."""
        return self.pred_voxels, self.ref_voxels

    @property
    def border_voxels(self) -> tuple[int, int]:
        """Number of border voxels in prediction and reference."""
        return len(self.pred.voxels), len(self.ref.voxels)

    @property
    def surfels(self) -> tuple[int, int]:
        """Number of surfels in prediction and reference."""
        return len(self.pred.surfels), len(self.ref.surfels)

    @property
    def hd_elements(self) -> tuple[int, int]:
        """Number of elements, in prediction and reference, from which the Hausdorff distances are computed."""
        return self.surfels if self.hd_mode == "surfel" else self.border_voxels

    @cached_property
    def border_distances_mm(self) -> tuple[Array, Array]:
        """Distances from predicted border voxels to the reference's border, and the reverse."""
        return (
            nearest_distances_mm(self.pred.voxels, self.ref.voxels, self.spacing_mm),
            nearest_distances_mm(self.ref.voxels, self.pred.voxels, self.spacing_mm),
        )

    @cached_property
    def surfel_distances_mm(self) -> tuple[Array, Array]:
        """Distances between surfels in both directions; exact up to the tolerance, or everywhere in mode ``surfel``."""
        limit = math.inf if self.hd_mode == "surfel" else self.tolerance_mm
        return (
            nearest_distances_mm(self.pred.surfels, self.ref.surfels, self.spacing_mm, limit),
            nearest_distances_mm(self.ref.surfels, self.pred.surfels, self.spacing_mm, limit),
        )

    @cached_property
    def surfel_areas_mm2(self) -> tuple[Array, Array]:
        """Area of each surfel of prediction and reference."""
        return self.areas_mm2[self.pred.codes], self.areas_mm2[self.ref.codes]
