"""From logits on the working grid to a mask on the scan's own grid, one slice at a time.

The mask is the argmax of interpolated logits, yet hardly any logit is interpolated: an interpolated value is a weighted
mean of its neighbours, so where one class is the highest at all four of them it is the highest in between as well.
Only voxels whose neighbours disagree, a shell around each organ, are worked out. No class is ever held at the scan's
resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volseg.geometry.trace import AxisMap, Trace
from volseg.planning.plan import Plan

_LABEL_TYPES = (np.uint8, np.uint16, np.int32)


def logits_to_mask(logits: Tensor, trace: Trace, plan: Plan) -> NDArray[Any]:
    """Interpolate logits linearly to the scan's voxels and take the highest class.

    Along depth the nearest slice is taken where the plan says so (thick slices). Beyond the outermost slice, row or
    column of the working grid its value is repeated; voxels that were cropped away are background.

    Args:
        logits: (K, D, H, W) float32 on ``trace.target``.
        trace: How the working grid came from the scan's.
        plan: Gives the label value of each class.

    Returns:
        (D, H, W) on ``trace.source``: the label values of the data set, in the smallest integer type that holds them.
    """
    assert logits.shape == (plan.num_classes, *trace.target.shape), (logits.shape, trace.target.shape)
    depth, rows, columns = (
        _neighbours(axis, n, m, nearest=plan.nearest_depth and number == 0)
        for number, (axis, n, m) in enumerate(
            zip(trace.axis_maps(), trace.cropped.shape, trace.target.shape, strict=True)
        )
    )
    label_type = next(kind for kind in _LABEL_TYPES if max(plan.label_values) <= np.iinfo(kind).max)
    values = np.array(plan.label_values, dtype=label_type)
    labels = np.empty(trace.cropped.shape, dtype=values.dtype)
    for index in range(len(labels)):
        low, high, weight = depth.low[index], depth.high[index], depth.weight[index]
        plane = torch.lerp(logits[:, low], logits[:, high], weight) if weight else logits[:, low]  # (K, H, W)
        labels[index] = values[_plane_classes(plane, rows, columns).numpy()]
    return trace.uncrop_and_reorient(labels, fill=plan.label_values[0])


@dataclass(frozen=True)
class _Neighbours:
    """For each target index: the source indices on its two sides and the weight of the higher one."""

    low: Tensor
    high: Tensor
    weight: Tensor


def _neighbours(axis: AxisMap, n_target: int, n_source: int, *, nearest: bool = False) -> _Neighbours:
    at = (axis.scale * torch.arange(n_target, dtype=torch.float64) + axis.offset).clamp(0, n_source - 1)
    if nearest:
        at = torch.floor(at + 0.5 + 1e-9).clamp(max=n_source - 1)  # halves go up, as in geometry.interpolate
    low = at.floor().long()
    return _Neighbours(low, (low + 1).clamp(max=n_source - 1), (at - low).float())


def _plane_classes(plane: Tensor, rows: _Neighbours, columns: _Neighbours) -> Tensor:
    """Class indices (H', W') of logits (K, H, W) interpolated to other rows and columns."""
    top = plane.max(dim=0).indices  # (H, W)
    low, high = top[rows.low], top[rows.high]  # (H', W)
    classes = low[:, columns.low]  # (H', W')
    mixed = classes != low[:, columns.high]
    mixed |= classes != high[:, columns.low]
    mixed |= classes != high[:, columns.high]
    row, column = mixed.nonzero(as_tuple=True)
    if len(row):
        classes[row, column] = _interpolate(plane, rows, columns, row, column).max(dim=0).indices
    return classes


def _interpolate(plane: Tensor, rows: _Neighbours, columns: _Neighbours, row: Tensor, column: Tensor) -> Tensor:
    """Logits (K, N) at N voxels of the target plane."""
    width = plane.shape[2]
    flat = plane.flatten(1)  # (K, H * W)
    across = columns.weight[column]

    def along_columns(at: Tensor) -> Tensor:
        first = at * width
        low, high = (flat.index_select(1, first + side[column]) for side in (columns.low, columns.high))
        return torch.lerp(low, high, across)

    return torch.lerp(along_columns(rows.low[row]), along_columns(rows.high[row]), rows.weight[row])
