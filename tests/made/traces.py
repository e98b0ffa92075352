"""What the tests do with a whole image or label map, built from what preprocessing and restoring do slab by slab."""

from __future__ import annotations

import numpy as np

from volseg.geometry.grid import Grid
from volseg.geometry.interpolate import HALF, apply_matrices
from volseg.geometry.resample import image_matrices
from volseg.geometry.trace import Trace


def resample_image(data: np.ndarray, grid: Grid, spacing_mm) -> tuple[np.ndarray, Grid]:
    """A whole image ``(C, D, H, W)`` at another spacing; the input itself when the spacing is the same."""
    target, matrices = image_matrices(grid, spacing_mm)
    return (data if target is grid else apply_matrices(data, matrices)), target


def resample(trace: Trace, data: np.ndarray, spacing_mm) -> tuple[np.ndarray, Trace]:
    """The same for data on the trace's target, recorded."""
    resampled, _ = resample_image(data, trace.target, spacing_mm)
    return resampled, trace.plan_resample(spacing_mm)[0]


def uncrop(trace: Trace, labels: np.ndarray, fill: int = 0) -> np.ndarray:
    """Labels on the ``cropped`` grid on the scan's own grid."""
    whole = np.full(trace.source.shape, fill, labels.dtype)
    trace.cropped_view(whole)[...] = labels
    return whole


def restore_labels(trace: Trace, labels: np.ndarray, fill: int = 0) -> np.ndarray:
    """Labels on the working grid on the scan's own grid, by nearest neighbour along the trace's axis maps."""
    assert labels.shape == trace.target.shape
    for axis, (axis_map, n) in enumerate(zip(trace.axis_maps(), trace.cropped.shape, strict=True)):
        at = np.floor(axis_map.scale * np.arange(n) + axis_map.offset + HALF).astype(np.intp)
        labels = labels.take(at.clip(0, labels.shape[axis] - 1), axis=axis)
    return uncrop(trace, labels, fill)
