"""Slices along the axes of stored scans: which are used, how many tokens fit, and pieces of a slice in millimetres."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from volseg.config.pretraining import SMALLEST_GLOBAL, SMALLEST_LOCAL, PretrainConfig
from volseg.errors import DataError, counted
from volseg.io.cases import listed
from volseg.preprocessing.intensity import Scaling
from volseg.pretraining.store import StoredScan

logger = logging.getLogger(__name__)

REGION = 1.25
"""Side of the region that the views of a slice are cut from, over that of a global view with tokens of the stride."""
SMALLEST_SIDE = 0.5
"""Shortest side of a slice that is used, over that of a global view with tokens of the stride."""
AS_STORED = Scaling(-np.inf, np.inf, 0, 1)
"""Scaling of channels that are stored as z-scores."""


@dataclass(frozen=True, kw_only=True)
class ViewShape:
    """Size of the views.

    Attributes:
        patch: Pixels along the side of a token.
        token_stride: Finest voxels that a token of a global view covers, about.
        global_tokens: Tokens along the side of a global view.
        local_tokens: The same of a local view.
        local_views: Local views of a slice.
    """

    patch: int
    token_stride: int
    global_tokens: int
    local_tokens: int
    local_views: int

    @property
    def side(self) -> int:
        """Finest voxels along the side of a global view, about."""
        return self.global_tokens * self.token_stride


@dataclass(frozen=True)
class SliceSource:
    """A scan whose slices are used.

    Attributes:
        scan: The scan.
        axes: Axes along which its slices are used.
        scaling: Of each channel, from stored to normalised values.
    """

    scan: StoredScan
    axes: tuple[int, ...]
    scaling: tuple[Scaling, ...]

    def piece(self, channel: int, axis: int, index: int, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """Return a piece of a slice, normalised: ``(1, rows, columns)`` float32.

        Args:
            channel: The channel.
            axis: Axis along which the slice lies.
            index: Its number.
            start: First row and column.
            size: Rows and columns.
        """
        box: list[int | slice] = [slice(first, first + length) for first, length in zip(start, size, strict=True)]
        box.insert(axis, index)
        stored = self.scan.volume[channel][tuple(box)]
        return torch.from_numpy(self.scaling[channel].apply(stored[None]))

    def plane(self, axis: int) -> tuple[tuple[int, int], tuple[float, float]]:
        """Return rows and columns of the slices along an axis, and their voxel size in mm."""
        rows, columns = (other for other in range(3) if other != axis)
        shape, spacing = self.scan.shape, self.scan.spacing_mm
        return (shape[rows], shape[columns]), (spacing[rows], spacing[columns])

    def size_of(self, axis: int, side: float) -> tuple[int, int]:
        """Return rows and columns of a square in mm, as far as the slice reaches.

        Args:
            axis: Axis along which the slice lies.
            side: Its side, in finest voxels of the scan.
        """
        shape, spacing = self.plane(axis)
        finest = min(self.scan.spacing_mm)
        rows, columns = (
            max(1, min(length, round(side * finest / mm))) for length, mm in zip(shape, spacing, strict=True)
        )
        return rows, columns


def ct_scaling(scans: Sequence[StoredScan]) -> Scaling:
    """Return the scaling of CT: clip to the 0.5 and 99.5 percentile of the bodies of all scans, then a z-score."""
    samples = np.concatenate([scan.samples for scan in scans]).astype(np.float64)
    if not len(samples):
        return AS_STORED
    low, high = np.percentile(samples, (0.5, 99.5))
    return Scaling(float(low), float(high), float(samples.mean()), float(samples.std()))


def slice_sources(scans: Sequence[StoredScan], axes: str, shape: ViewShape, ct: Scaling) -> list[SliceSource]:
    """Return the scans with the axes along which slices are large enough; others are left out with a warning.

    Args:
        scans: The scans.
        axes: ``all``, or ``slice`` for that of the coarsest spacing.
        shape: Size of the views.
        ct: Scaling of CT channels.
    """
    sources, left_out = [], []
    for scan in scans:
        fitting = tuple(axis for axis in candidates(scan, axes) if _extent(scan, axis) >= SMALLEST_SIDE * shape.side)
        if fitting:
            sources.append(SliceSource(scan, fitting, tuple(ct if is_ct else AS_STORED for is_ct in scan.is_ct)))
        else:
            left_out.append(scan.id)
    if left_out:
        logger.warning(
            "left out, because smaller than half a view: %s: %s", counted(len(left_out), "scan"), listed(left_out)
        )
    return sources


def candidates(scan: StoredScan, axes: str) -> tuple[int, ...]:
    """Return the axes along which slices are cut: all, or the one with the coarsest spacing, ties to the first."""
    coarsest = int(np.argmax(np.round(scan.spacing_mm, 3)))
    return (0, 1, 2) if axes == "all" else (coarsest,)


def view_shape(scans: Sequence[StoredScan], settings: PretrainConfig, patch: int) -> ViewShape:
    """Return the size of the views: as many tokens as set, or as fit into half of the scans along their best axis.

    Args:
        scans: The scans.
        settings: The settings.
        patch: Pixels along the side of a token.

    Raises:
        DataError: Fewer than 4 x 4 tokens fit.
    """
    typical = median(max(_extent(scan, axis) for axis in candidates(scan, settings.axes)) for scan in scans)
    fitting = int(typical / settings.token_stride + 1e-6)
    if fitting < SMALLEST_GLOBAL:
        largest = int(typical / SMALLEST_GLOBAL + 1e-6)
        raise DataError(
            f"the scans are too small for views of {SMALLEST_GLOBAL} x {SMALLEST_GLOBAL} tokens",
            found=f"slices of about {typical:.3g} of the finest voxels, pretrain.token_stride={settings.token_stride}",
            expected=f"at least {SMALLEST_GLOBAL * settings.token_stride}",
            hint=f"set pretrain.token_stride={largest}" if largest else "use larger scans",
        )
    tokens = min(settings.global_tokens, fitting)
    local = max(SMALLEST_LOCAL, min(settings.local_tokens, tokens // 2))
    return ViewShape(
        patch=patch,
        token_stride=settings.token_stride,
        global_tokens=tokens,
        local_tokens=local,
        local_views=settings.local_views,
    )


def _extent(scan: StoredScan, axis: int) -> float:
    """Return the shorter side of the slices along an axis, in finest voxels."""
    sides = [length * mm for length, mm in zip(scan.shape, scan.spacing_mm, strict=True)]
    return min(side for other, side in enumerate(sides) if other != axis) / min(scan.spacing_mm)
