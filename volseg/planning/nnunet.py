"""Rules of the plan that are equal to nnU-Net's: target spacing, resampled shape, largest patch, depth of the decoder.

Source: Isensee et al., nnU-Net, Nature Methods 18 (2021), supplementary note 2; MIC-DKFZ/nnUNet 2.8.1. Each function
names the original, with which it agreed in 20,000 random cases. Triples are (D, H, W) of the working grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

ANISOTROPY = 3.0
"""An axis this many times coarser than the others is a thick-slice axis (``ANISO_THRESHOLD``)."""
FINER_MM = 1e-5
"""The thick axis stays this much coarser than the others."""
START_VOXELS = 256**3
"""Voxels of the largest patch, a cube in mm."""
MIN_EDGE = 4
"""An axis is halved only while at least this many voxels remain."""
CROP_REDUCTION = 0.25
"""Share of the median case that cropping to the nonzero box must remove."""
LARGEST_SHARE = 0.05
"""Most of the voxels of a data set that a batch may hold."""
MIN_BATCH = 2

Triple = tuple[float, float, float]


def is_anisotropic(median_mm: ArrayLike, median_voxels: ArrayLike) -> bool:
    """Return whether one axis is over 3 times as coarse as the others and has less than a third of their voxels.

    Args:
        median_mm: Median spacing (3,).
        median_voxels: Median shape at the cases' own spacings (3,).
    """
    spacing, size = np.asarray(median_mm), np.asarray(median_voxels)
    thick = int(spacing.argmax())
    others = [axis for axis in range(3) if axis != thick]
    return bool(spacing[thick] > ANISOTROPY * spacing[others].max() and size[thick] * ANISOTROPY < size[others].min())


def target_spacing(spacings_mm: ArrayLike, shapes: ArrayLike) -> Triple:
    """Return the median spacing; the thick axis of an anisotropic set takes the 10th percentile.

    The thick axis never becomes finer than the others.

    Args:
        spacings_mm: (cases, 3).
        shapes: (cases, 3), voxels of the nonzero box at those spacings.

    Source: ``ExperimentPlanner.determine_fullres_target_spacing``; rounded here to 6 decimals.
    """
    spacings = np.asarray(spacings_mm, dtype=np.float64)
    target = np.percentile(spacings, 50, axis=0)
    if is_anisotropic(target, np.percentile(np.asarray(shapes), 50, axis=0)):
        thick = int(target.argmax())
        finest = max(value for axis, value in enumerate(target) if axis != thick)
        thin_mm = np.percentile(spacings[:, thick], 10)
        target[thick] = thin_mm if thin_mm >= finest else finest + FINER_MM
    d, h, w = (round(float(value), 6) for value in target)
    return d, h, w


def median_shape(spacings_mm: ArrayLike, shapes: ArrayLike, target_mm: ArrayLike) -> np.ndarray:
    """Return the median over the cases of the shape after resampling, (3,) float; no axis is shorter than 1 voxel.

    Source: ``compute_new_shape`` and ``ExperimentPlanner.plan_experiment``.
    """
    resampled = np.asarray(spacings_mm) / np.asarray(target_mm) * np.asarray(shapes)
    return np.asarray(np.median(np.maximum(resampled.round(), 1), axis=0))


def start_shape(median: ArrayLike, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the largest patch: a cube in mm of 256^3 voxels, limited to the median case; (3,) float.

    Source: ``ExperimentPlanner.get_plans_for_configuration``, ``initial_patch_size``.
    """
    per_mm = 1 / np.asarray(spacing_mm, dtype=np.float64)
    cube = (per_mm * (START_VOXELS / per_mm.prod()) ** (1 / 3)).round()
    return np.asarray(np.minimum(cube, median))


def depth_strides(spacing_mm: Sequence[float], depth: float, levels: int) -> list[int]:
    """Return the cumulative stride along depth of each level of a network that halves both in-plane axes at each.

    Depth is halved at a level only while its spacing there is within a factor 2 of the finest, and it has at least 8
    voxels; odd sizes round up.

    Args:
        spacing_mm: Target spacing.
        depth: Voxels along D.
        levels: Levels after the first, whose stride is 1.

    Source: ``get_pool_and_conv_props``, where both in-plane axes are halved at each of these levels.
    """
    strides, size = [1], depth
    for level in range(levels):
        d, finest = spacing_mm[0] * strides[-1], min(spacing_mm[1:]) * 2**level
        halved = size >= 2 * MIN_EDGE and d / min(d, finest) < 2
        size = math.ceil(size / 2) if halved else size
        strides.append(strides[-1] * (2 if halved else 1))
    return strides


def is_cropping_large(kept: Sequence[float]) -> bool:
    """Return whether cropping to the nonzero box removes over a quarter of the median case.

    Args:
        kept: Share of the voxels that remain, per case.

    Source: ``determine_normalization_scheme_and_whether_mask_is_used_for_norm``. nnU-Net crops every case, and
    normalises over nonzero voxels under this condition; volseg does both or neither.
    """
    return bool(np.median(kept) < 1 - CROP_REDUCTION)


def is_thick_along_depth(spacing_mm: Sequence[float]) -> bool:
    """Return whether D alone is the coarsest axis and over 3 times as coarse as the finest.

    Source: ``determine_do_sep_z_and_axis``, for the target spacing.
    """
    return max(spacing_mm) / min(spacing_mm) > ANISOTROPY and spacing_mm[0] > max(spacing_mm[1:])


def is_flat(patch: Sequence[int]) -> bool:
    """Return whether a patch is over 3 times as long in plane as along D, so that rotations about D alone are possible.

    Source: ``nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size``.
    """
    return max(patch) / patch[0] > ANISOTROPY


def largest_batch(median: ArrayLike, cases: int, patch: Sequence[int]) -> int:
    """Return the number of patches that hold 5% of the voxels of the data set, at least 2.

    Source: ``ExperimentPlanner.get_plans_for_configuration``, ``bs_corresponding_to_5_percent``.
    """
    voxels = float(np.prod(np.asarray(median), dtype=np.float64)) * cases
    return max(round(voxels * LARGEST_SHARE / math.prod(patch)), MIN_BATCH)
