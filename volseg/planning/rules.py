"""The rules that derive a plan from a fingerprint: one pure function per decision; nnU-Net's own are in `nnunet`.

Triples are in the order of the plan's axes (D, H, W) unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from volseg.config.levels import Strides
from volseg.planning import nnunet
from volseg.planning.fingerprint import AIR_CUBE_MM, AIR_WINDOW_HU, CaseFingerprint, Triple

PATCH_VOXELS = 32 * 128 * 128
"""Most voxels of a patch: a batch of 2 fits a small GPU, and a step takes seconds on a CPU."""
TOKENS_ACROSS = 1.5
"""Tokens that the smallest structure must be wide."""
MOST_TOKENS = 8192
"""Most tokens of a patch at a token stride finer than 8: each halving costs four times as many."""
TOKEN_STRIDES = (16, 8, 4)
SAME_ORDER = 0.9
"""Share of cases in which two classes must lie in the same order for the axis not to be mirrored."""
WHOLLY_ASIDE = 0.5
"""Median distance of a class from the body's middle, in its extents, from which on it lies on one side."""
MATERIAL_SEPARATION = 0.25
"""Median distance of two centroids, in extents of the smaller class, below which their order is ignored."""
SIDES = ("to the right of", "in front of", "above")
"""Words for a larger coordinate along R, A, S."""

ORIENTATIONS = {"S": "SPL", "A": "AIL", "R": "RIP"}
"""Working orientation by slice axis: slices along D, rows and columns in radiological convention."""
ANATOMICAL_AXES = {"S": (2, 1, 0), "A": (1, 2, 0), "R": (0, 2, 1)}
"""Index in (R, A, S) of each axis of the working grid."""


def slice_axis(spacings_mm: ArrayLike) -> str:
    """Return the anatomical direction with the coarsest median spacing; ties within 1 % go to S, then A.

    nnU-Net takes the first axis of the file instead, so that its choice depends on how files were written.

    Args:
        spacings_mm: (cases, 3), in (R, A, S) order.
    """
    median = np.median(np.asarray(spacings_mm), axis=0)
    coarse = [code for code in "SAR" if median["RAS".index(code)] >= 0.99 * median.max()]
    return coarse[0]


def crop_nonzero(cases: Sequence[CaseFingerprint]) -> bool:
    """Return whether cases are cropped to the nonzero box: it is over a quarter smaller than the median case."""
    return nnunet.is_cropping_large([np.prod(case.nonzero_shape) / np.prod(case.shape) for case in cases])


def smallest_structure(
    cases: Sequence[CaseFingerprint], axes: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[str, float]:
    """Return the class that is narrowest in plane, and its width in voxels.

    The size of a class is its shorter in-plane extent (largest connected component), 10th percentile over the cases.

    Args:
        cases: Fingerprints.
        axes: Index in (R, A, S) of each working axis.
        spacing_mm: Target spacing (D, H, W).
    """
    in_plane = [axes[1], axes[2]]
    sizes: dict[str, list[float]] = {}
    for case in cases:
        for name, shape in case.classes.items():
            voxels = np.array(shape.extent_mm)[in_plane] / np.array(spacing_mm[1:])
            sizes.setdefault(name, []).append(float(voxels.min()))
    widths = {name: float(np.percentile(values, 10)) for name, values in sizes.items()}
    name = min(widths, key=widths.__getitem__, default="")
    return name, widths.get(name, 0.0)


def token_stride(
    cases: Sequence[CaseFingerprint], axes: Sequence[int], spacing_mm: Sequence[float], size: ArrayLike
) -> int:
    """Return the coarsest token stride at which the smallest structure is 1.5 tokens wide, if affordable.

    Then at least one token lies inside a structure, while the stem on the raw voxels resolves its border. Each finer
    step costs four times the tokens, so that 4 is only chosen where a patch has at most 8,192 tokens then; elsewhere
    the stem alone finds the smallest structures. Hippocampus: 14 voxels -> 8 (1.75 tokens; 16 would give 0.9). CHAOS:
    the kidneys' 42 voxels -> 16 (2.6 tokens), where the slice is resized by 14/16 only.

    Args:
        cases: Fingerprints.
        axes: Index in (R, A, S) of each working axis.
        spacing_mm: Target spacing (D, H, W).
        size: Voxels of the patch, or of the case that it will be cut from (D, H, W).
    """
    _, smallest = smallest_structure(cases, axes, spacing_mm)
    affordable = [stride for stride in TOKEN_STRIDES if stride >= 8 or tokens(size, stride) <= MOST_TOKENS]
    return next((stride for stride in affordable if smallest >= TOKENS_ACROSS * stride), affordable[-1])


def tokens(size: ArrayLike, stride: int) -> int:
    """Return the tokens of a patch from a case of some size, with at most 32 x 128 x 128 voxels."""
    return int(min(float(np.prod(np.asarray(size, dtype=np.float64))), PATCH_VOXELS)) // stride**2


def decoder_strides(spacing_mm: Sequence[float], depth: float, stride: int, *, exact: bool = False) -> Strides:
    """Return the decoder's cumulative strides to the token stride: in plane 1, 2, ...; along depth by nnU-Net's rule.

    Unlike nnU-Net, every level halves both in-plane axes, because the token grid has to be reached, and the size of the
    case decides, not that of the patch cut from it.

    Args:
        spacing_mm: Target spacing.
        depth: Voxels along D of the patch, or of the case that it will be cut from.
        stride: Token stride.
        exact: ``depth`` is fixed and must stay divisible.
    """
    levels = stride.bit_length() - 1
    along = nnunet.depth_strides(spacing_mm, depth, levels)
    if exact:
        along = [min(step, math.gcd(int(depth), along[-1])) for step in along]
    return tuple((step, 2**level, 2**level) for level, step in enumerate(along))


def one_level_deeper(
    spacing_mm: Sequence[float], patch: Sequence[int], strides: Strides, *, exact: bool = False
) -> Strides | None:
    """Return the strides with one more level, if nnU-Net's rule has one for this patch.

    As in nnU-Net, an axis is halved while the patch has at least 8 voxels there, depth only while its spacing is within
    a factor 2 of the plane's.

    Args:
        spacing_mm: Target spacing.
        patch: Voxels of the patch.
        strides: Cumulative stride of each level.
        exact: The patch is fixed and must stay divisible.
    """
    depth, height, width = strides[-1]
    halved = [
        size >= 2 * nnunet.MIN_EDGE * step and not (exact and size % (2 * step))
        for size, step in zip(patch, strides[-1], strict=True)
    ]
    if not (halved[1] and halved[2]):
        return None
    near = spacing_mm[0] * depth < 2 * min(spacing_mm[1] * height, spacing_mm[2] * width)
    return (*strides, (depth * 2 if halved[0] and near else depth, height * 2, width * 2))


def leaves_voxels(patch: Sequence[int], strides: Strides) -> bool:
    """Return whether a patch has at least 4 voxels at the deepest level along each axis that is halved there."""
    deepest, above = strides[-1], strides[-2]
    return all(
        size >= nnunet.MIN_EDGE * step or step == before
        for size, step, before in zip(patch, deepest, above, strict=True)
    )


def patch_sizes(median: ArrayLike, spacing_mm: Sequence[float], multiples: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return patches from the whole median case to the smallest one.

    Sizes are rounded up to the multiples. From each patch to the next, the axis that covers most of the median case is
    reduced by one multiple (an in-plane axis if several cover equally), as in nnU-Net, where the multiples may change.

    Args:
        median: Median shape at the target spacing.
        spacing_mm: Target spacing.
        multiples: Deepest decoder strides; sizes are multiples of them.
    """
    multiple = np.asarray(multiples)
    patch = np.ceil(nnunet.start_shape(median, spacing_mm) / multiple).astype(int) * multiple
    sizes = [patch.copy()]
    while (patch > multiple).any():
        cover = np.where(patch > multiple, patch / np.asarray(median), 0)
        axis = 2 - int(cover[::-1].argmax())
        patch[axis] -= multiple[axis]
        sizes.append(patch.copy())
    return [(int(d), int(h), int(w)) for d, h, w in sizes]


def patch_size(median: ArrayLike, spacing_mm: Sequence[float], multiples: Sequence[int]) -> tuple[int, int, int]:
    """Return the largest of `patch_sizes` with at most 32 x 128 x 128 voxels."""
    sizes = patch_sizes(median, spacing_mm, multiples)
    return next((size for size in sizes if math.prod(size) <= PATCH_VOXELS), sizes[-1])


def mirror_axes(cases: Sequence[CaseFingerprint], axes: Sequence[int]) -> tuple[int, ...]:
    """Return the working axes along which a flip gives possible anatomy: those without an entry in `fixed_directions`.

    Args:
        cases: Fingerprints.
        axes: Index in (R, A, S) of each working axis.
    """
    fixed = fixed_directions(cases)
    return tuple(working for working, anatomical in enumerate(axes) if anatomical not in fixed)


def fixed_directions(cases: Sequence[CaseFingerprint]) -> dict[int, str]:
    """Return the anatomical axes (0, 1, 2 = R, A, S) that must not be mirrored, with the reason.

    An axis is excluded when for some two classes the order of the centroids is the same in at least 90 % of the
    cases that hold both, and the separation is material: its median is at least a quarter of the extent of the
    smaller of the two (medians over the cases). Hippocampus: posterior lies behind (1.1 extents) and above (0.5)
    anterior in every case; to the left in 92 %, but by 0.1 extents only, so that axis alone is mirrored.

    Left and right are not exchanged either if some class lies on one side of the body's middle in at least 90 % of the
    cases, by at least half its extent in the median: the other side may hold the same organ without a label, as with
    the left kidney alone. Spleen in CHAOS: 0.7 extents; liver, which crosses the middle: 0.48.
    """
    names = sorted({name for case in cases for name in case.classes})
    fixed: dict[int, str] = {}
    for first, second in combinations(names, 2):
        both = [(c.classes[first], c.classes[second]) for c in cases if first in c.classes and second in c.classes]
        if not both:
            continue
        apart = np.array([np.subtract(a.centroid_mm, b.centroid_mm) for a, b in both])  # (cases, 3)
        extents = np.array([(a.extent_mm, b.extent_mm) for a, b in both])  # (cases, 2, 3)
        above = (apart > 0).mean(axis=0)
        agreement = np.maximum(above, (apart < 0).mean(axis=0))
        separation = np.median(np.abs(apart), axis=0) / np.median(extents, axis=0).min(axis=0)
        for axis in np.flatnonzero((agreement >= SAME_ORDER) & (separation >= MATERIAL_SEPARATION)).tolist():
            order = (first, second) if above[axis] >= 0.5 else (second, first)
            text = f"{order[0]} lies {SIDES[axis]} {order[1]} in {agreement[axis]:.0%} of the cases"
            fixed.setdefault(axis, f"{text}, by {separation[axis]:.1f} extents of the smaller")
    one_sided = [name for name in names if _is_one_sided(cases, name)]
    if one_sided and 0 not in fixed:
        fixed[0] = f"{one_sided[0]} lies on one side of the body, whose other side may hold the same without a label"
    return dict(sorted(fixed.items()))


def _is_one_sided(cases: Sequence[CaseFingerprint], name: str) -> bool:
    """Return whether a class lies on the same side of the body's middle, largely beyond it, in nearly all cases."""
    shapes = [(case.classes[name], case.midline_mm) for case in cases if name in case.classes]
    offsets = [(shape.centroid_mm[0] - mm, shape.extent_mm[0]) for shape, mm in shapes if mm is not None]
    if not offsets:
        return False
    offset, extent = np.array(offsets).T
    agreement = max((offset > 0).mean(), (offset < 0).mean())
    return bool(agreement >= SAME_ORDER and np.median(np.abs(offset)) >= WHOLLY_ASIDE * np.median(extent))


def lost_labels(
    cases: Sequence[CaseFingerprint], axes: Sequence[int], spacing_mm: Sequence[float], *, crop: bool
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield what cropping and resampling take away from the labels.

    A class loses voxels outside the nonzero box if cases are cropped to it, and may vanish where its largest component
    is thinner than half a voxel of the working grid.

    Args:
        cases: Fingerprints.
        axes: Index in (R, A, S) of each working axis.
        spacing_mm: Target spacing (D, H, W).
        crop: Whether cases are cropped to the nonzero box.

    Yields:
        Kind of finding (``lost-by-cropping`` or ``lost-by-resampling``), class, and case -> share or size.
    """
    for name in sorted({name for case in cases for name in case.classes}):
        shapes = {case.id: case.classes[name] for case in cases if name in case.classes}
        outside = {case: shape.outside_nonzero for case, shape in shapes.items() if crop and shape.outside_nonzero > 0}
        extents = {case: np.array(shape.extent_mm)[list(axes)] for case, shape in shapes.items()}
        thin = {case: extent for case, extent in extents.items() if (extent < np.array(spacing_mm) / 2).any()}
        if outside:
            yield "lost-by-cropping", name, {case: f"{share:.1%}" for case, share in outside.items()}
        if thin:
            sizes = {case: " x ".join(f"{mm:.3g}" for mm in extent) + " mm" for case, extent in thin.items()}
            yield "lost-by-resampling", name, sizes


def rotate_in_plane_only(spacing_mm: Sequence[float], patch: Sequence[int]) -> bool:
    """Return whether augmentation rotates about D only: a flat patch, as in nnU-Net, or thick slices."""
    return nnunet.is_thick_along_depth(spacing_mm) or nnunet.is_flat(patch)


def air_below(cases: Sequence[CaseFingerprint], spacing_mm: Triple, patch: Sequence[int]) -> float | None:
    """Return the raw value below which a window is air, if no label of any case lies in such a window.

    Args:
        cases: Fingerprints; only those of CT were searched for labels in air.
        spacing_mm: Voxel size of the working grid.
        patch: Window in voxels; it must not be smaller than the searched cubes.

    Returns:
        :data:`~volseg.planning.fingerprint.AIR_WINDOW_HU`, or ``None`` if windows of air must not be skipped.
    """
    covered = min(n * mm for n, mm in zip(patch, spacing_mm, strict=True)) >= AIR_CUBE_MM
    return AIR_WINDOW_HU if covered and all(case.labels_in_air is False for case in cases) else None
