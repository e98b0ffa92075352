"""Where windows lie on a volume, and how much each of their voxels counts where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.geometry.ops import missing_voxels

Size = tuple[int, int, int]
_SIGMA_FRACTION = 0.125
_LEAST_WEIGHT = 1e-3


def window_starts(size: int, window: int, overlap: float = 0.5) -> list[int]:
    """First voxels of the windows that cover one axis.

    Windows follow each other at ``window * (1 - overlap)`` voxels; the last is moved back to end with the axis.
    These are the positions of MONAI's ``SlidingWindowInferer``, so results can be compared voxel by voxel.

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
    """Where the windows of a volume lie.

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
    def of(cls, size: Size, window: Size, overlap: float = 0.5) -> Layout:
        """Lay windows over a volume; padding is that of :func:`volseg.geometry.ops.pad_to_size`."""
        d, h, w = (max(n, m) for n, m in zip(size, window, strict=True))
        before, _ = missing_voxels(size, window)
        depth, rows, columns = (window_starts(n, m, overlap) for n, m in zip((d, h, w), window, strict=True))
        return cls(size, window, (d, h, w), before, (depth, rows, columns))


def gaussian_importance(window: Sequence[int]) -> Tensor:
    """Weight of each voxel of a window: a Gaussian around the window's centre.

    Sigma is an eighth of the window along each axis; weights below 0.001 are raised to it, so that a voxel that only
    a window's corner covers keeps its precision.

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
