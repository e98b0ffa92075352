"""One class in the prediction and the reference of a case: what every metric is computed from."""

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
    """One class in prediction and reference; distances are computed once, when a metric first needs them.

    Attributes:
        pred_voxels: Voxels of the class in the prediction.
        ref_voxels: Voxels of the class in the reference.
        both_voxels: Voxels of the class in both.
        pred: Predicted surface.
        ref: Reference surface.
        spacing_mm: Voxel size along the three axes.
        areas_mm2: Area of each surfel code, shape (256,).
        diagonal_mm: The distance given when one of the surfaces does not exist.
        hd_mode: Which borders and percentile the Hausdorff distances are taken of.
        tolerance_mm: Distance up to which surfels count as agreeing.
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
        """Voxels of prediction and reference."""
        return self.pred_voxels, self.ref_voxels

    @property
    def border_voxels(self) -> tuple[int, int]:
        """Border voxels of prediction and reference."""
        return len(self.pred.voxels), len(self.ref.voxels)

    @property
    def surfels(self) -> tuple[int, int]:
        """Surfels of prediction and reference."""
        return len(self.pred.surfels), len(self.ref.surfels)

    @property
    def hd_elements(self) -> tuple[int, int]:
        """Number of elements that the Hausdorff distances are taken of, in prediction and reference."""
        return self.surfels if self.hd_mode == "surfel" else self.border_voxels

    @cached_property
    def border_distances_mm(self) -> tuple[Array, Array]:
        """Distances from each predicted border voxel to the reference's border, and from the reference's to it."""
        return (
            nearest_distances_mm(self.pred.voxels, self.ref.voxels, self.spacing_mm),
            nearest_distances_mm(self.ref.voxels, self.pred.voxels, self.spacing_mm),
        )

    @cached_property
    def surfel_distances_mm(self) -> tuple[Array, Array]:
        """The same for surfels; beyond the tolerance a distance may be infinite unless ``hd_mode`` needs it."""
        limit = math.inf if self.hd_mode == "surfel" else self.tolerance_mm
        return (
            nearest_distances_mm(self.pred.surfels, self.ref.surfels, self.spacing_mm, limit),
            nearest_distances_mm(self.ref.surfels, self.pred.surfels, self.spacing_mm, limit),
        )

    @cached_property
    def surfel_areas_mm2(self) -> tuple[Array, Array]:
        """Area of each surfel of prediction and reference."""
        return self.areas_mm2[self.pred.codes], self.areas_mm2[self.ref.codes]
