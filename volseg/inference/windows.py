"""Where windows lie on a volume, and how much each of their voxels counts where they overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
