"""Positions of the sliding windows on a volume, and the weights with which they are blended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.geometry.ops import missing_voxels

Size = tuple[int, int, int]
OVERLAP = 0.5
"""Fraction of a window that the next one covers again, along each axis."""
_SIGMA_FRACTION = 0.125
_LEAST_WEIGHT = 1e-3


def window_starts(size: int, window: int, overlap: float = OVERLAP) -> list[int]:
    """Return the first voxels of the windows that cover one axis.

    The distance of windows is ``window * (1 - overlap)`` voxels; the last window is moved back to end with the axis.
    MONAI's ``SlidingWindowInferer`` has the same positions, so results can be compared voxel by voxel.

    Args:
        size: Voxels along the axis, at least ``window``.
        window: Voxels of a window.
        overlap: Fraction of a window that the next one covers again, 0 <= overlap < 1.

    Returns:
        Ascending starts; the first is 0, the last ``size - window``.
    """
    assert 0 < window <= size, (window, size)
    assert 0 <= overlap < 1, overlap
    step = max(1, int(window * (1 - overlap)))
    return [*range(0, size - window, step), size - window]


@dataclass(frozen=True)
class Layout:
    """Positions of the windows of a volume.

    Attributes:
        size: Voxels (D, H, W) of the volume.
        window: Voxels (D, H, W) of a window.
        padded: Size after padding to at least one window.
        before: Voxels that padding adds before each axis.
        starts: First voxels of the windows along D, H and W, in the padded volume.
    """

    size: Size
    window: Size
    padded: Size
    before: Size
    starts: tuple[list[int], list[int], list[int]]

    @classmethod
    def of(cls, size: Size, window: Size) -> Layout:
        """Compute the layout of a volume, padded as `volseg.geometry.ops.pad_to_size` does."""
        d, h, w = (max(n, m) for n, m in zip(size, window, strict=True))
        before, _ = missing_voxels(size, window)
        depth, rows, columns = (window_starts(n, m) for n, m in zip((d, h, w), window, strict=True))
        return cls(size, window, (d, h, w), before, (depth, rows, columns))


def gaussian_importance(window: Sequence[int]) -> Tensor:
    """Return the weight of each voxel of a window: a Gaussian around the window's centre.

    Sigma is an eighth of the window along each axis. Weights are at least 0.001, so that a voxel covered by a window's
    corner only keeps its precision.

    Args:
        window: Voxels (D, H, W).

    Returns:
        (D, H, W) float32, at most 1.

    Source: Isensee et al., nnU-Net (Nature Methods 2021), Methods, "Inference"; MONAI ``compute_importance_map``.
    """
    weight = torch.ones(())
    for size in window:
        distance = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        profile = torch.exp(-(distance**2) / (2 * (size * _SIGMA_FRACTION) ** 2))
        weight = weight.unsqueeze(-1) * profile
    return weight.clamp(min=max(float(weight.min()), _LEAST_WEIGHT))
