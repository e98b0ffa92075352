"""Levels of the `unetr` decoder: kernel of each, and what its convolutions see; without torch, for network and plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Stride = tuple[int, int, int]
"""Voxels per feature along D, H and W."""
Strides = tuple[Stride, ...]
"""Cumulative stride of each level, finest first."""


def conv_kernel(stride: Sequence[int], spacing_mm: Sequence[float]) -> Stride:
    """Return the kernel of a level: 3x3x3, or 1x3x3 where slices are at least twice as thick as pixels are wide.

    Args:
        stride: Cumulative stride of the level.
        spacing_mm: Target spacing.

    Source: ``get_pool_and_conv_props`` in MIC-DKFZ/nnUNet v2.
    """
    depth, height, width = (step * spacing for step, spacing in zip(stride, spacing_mm, strict=True))
    return (3 if depth < 2 * min(height, width) else 1), 3, 3


def receptive_field(strides: Strides, spacing_mm: Sequence[float]) -> Stride:
    """Return how many voxels the convolutions of the `unetr` decoder see along D, H and W, without the encoder.

    Each level has two convolutions on the way down, the first of them on the grid of the level above, and two on the
    way up, but for the deepest. A convolution of ``k`` voxels adds ``k - 1`` steps of its grid.

    Args:
        strides: Cumulative stride of each level.
        spacing_mm: Target spacing.
    """
    seen = np.ones(3, dtype=int)
    above = np.ones(3, dtype=int)
    for level, stride in enumerate(np.asarray(strides, dtype=int)):
        steps = np.array(conv_kernel(stride, spacing_mm)) - 1
        first = np.maximum(steps, stride // above - 1)  # a stride longer than the kernel widens it
        seen += first * above + steps * stride * (3 if level < len(strides) - 1 else 1)
        above = stride
    depth, height, width = seen.tolist()
    return depth, height, width
