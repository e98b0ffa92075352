"""From logits on the working grid to a mask on the scan's own grid, one slice at a time.

The mask is the argmax of interpolated logits, yet hardly any logit is interpolated: an interpolated value is a weighted
mean of its neighbours, so where one class is the highest at all four of them it is the highest in between as well.
Only voxels whose neighbours disagree, a shell around each organ, are worked out. No class is ever held at the scan's
resolution. The same holds for an ensemble: where all members agree, so does the mean of their probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volseg.errors import ConfigError
from volseg.geometry.interpolate import HALF
from volseg.geometry.trace import AxisMap, Trace
from volseg.planning.plan import Plan

_LABEL_TYPES = (np.uint8, np.uint16, np.int32)

LogitSlabs = Iterable[tuple[int, Sequence[Tensor]]]
"""Ascending slabs of the working grid: the first slice, and (K, n, H, W) of each model."""


class SliceOutput(Protocol):
    """Something that is written slice by slice beside the mask."""

    def write(self, index: int, probabilities: Tensor) -> None:
        """Take the probabilities (K, H, W) of a slice of ``trace.cropped``."""


@dataclass(frozen=True)
class Member:
    """Logits that take part in a mask.

    Attributes:
        slabs: The logits, as the engine gives them.
        trace: How the working grid came from the scan's.
        nearest_depth: Take the nearest slice along depth (thick slices).
    """

    slabs: LogitSlabs
    trace: Trace
    nearest_depth: bool = False


def logits_to_mask(logits: Tensor, trace: Trace, plan: Plan) -> NDArray[Any]:
    """Interpolate logits linearly to the scan's voxels and take the highest class; see :func:`restore_mask`.

    Args:
        logits: (K, D, H, W) float32 on ``trace.target``.
        trace: How the working grid came from the scan's.
        plan: Gives the label value of each class.
    """
    assert logits.shape == (plan.num_classes, *trace.target.shape), (logits.shape, trace.target.shape)
    return restore_mask([Member([(0, [logits])], trace, plan.nearest_depth)], plan.label_values)


def restore_mask(
    members: Sequence[Member], label_values: Sequence[int], outputs: Sequence[SliceOutput] = ()
) -> NDArray[Any]:
    """Interpolate logits linearly to the scan's voxels, average the members' probabilities, take the highest class.

    Along depth the nearest slice is taken where a member says so. Beyond the outermost slice, row or column of the
    working grid its value is repeated; voxels that were cropped away are background.

    Args:
        members: One or several; they meet on the scan's grid.
        label_values: The label of each class.
        outputs: What else is written.

    Returns:
        (D, H, W) on the scan's grid: the label values of the data set, in the smallest integer type that holds them.

    Raises:
        ConfigError: The members do not run along the same axis of the scan, or crop it differently.
    """
    trace = members[0].trace
    if any(member.trace.cropped != trace.cropped for member in members):
        raise ConfigError(
            "models of one ensemble must cut a scan into the same slices",
            found=" and ".join(sorted({member.trace.cropped.describe() for member in members})),
            hint="use models whose plans agree in slice_axis and crop_nonzero",
        )
    label_type = next(kind for kind in _LABEL_TYPES if max(label_values) <= np.iinfo(kind).max)
    values = np.array(label_values, dtype=label_type)
    labels = np.full(trace.source.shape, values[0])
    target = trace.cropped_view(labels)
    slices = (_slices(member) for member in members)
    for index, planes in enumerate(zip(*slices, strict=True)):
        chosen = [plane for member in planes for plane in member]
        target[index] = values[_slice_classes(chosen).numpy()]
        if outputs:
            probabilities = _mean_probabilities([_whole_plane(plane) for plane in chosen])
            for output in outputs:
                output.write(index, probabilities)
    return labels


@dataclass(frozen=True)
class _Neighbours:
    """For each target index: the source indices on its two sides and the weight of the higher one."""

    low: Tensor
    high: Tensor
    weight: Tensor


@dataclass(frozen=True)
class _Plane:
    """Logits (K, H, W) of one slice of the scan, still with the rows and columns of the working grid."""

    logits: Tensor
    rows: _Neighbours
    columns: _Neighbours


def _neighbours(axis: AxisMap, n_target: int, n_source: int, *, nearest: bool = False) -> _Neighbours:
    at = (axis.scale * torch.arange(n_target, dtype=torch.float64) + axis.offset).clamp(0, n_source - 1)
    if nearest:
        at = torch.floor(at + HALF).clamp(max=n_source - 1)  # halves go up, as in geometry.interpolate
    low = at.floor().long()
    return _Neighbours(low, at.ceil().long(), (at - low).float())


def _slices(member: Member) -> Iterator[list[_Plane]]:
    """For each slice of the scan: the planes of the member's models, interpolated along depth."""
    trace = member.trace
    depth, rows, columns = (
        _neighbours(axis, n, m, nearest=member.nearest_depth and number == 0)
        for number, (axis, n, m) in enumerate(
            zip(trace.axis_maps(), trace.cropped.shape, trace.target.shape, strict=True)
        )
    )
    for planes in _along_depth(member.slabs, depth):
        yield [_Plane(plane, rows, columns) for plane in planes]


def _along_depth(slabs: LogitSlabs, depth: _Neighbours) -> Iterator[list[Tensor]]:
    """Logits (K, H, W) of each model at each target slice; slabs are drawn when they are needed."""
    stream = iter(slabs)
    first, stop = 0, 0
    held: Sequence[Tensor] = ()
    before: list[Tensor] = []  # the last slice of the slab before
    for low, high, weight in zip(depth.low.tolist(), depth.high.tolist(), depth.weight.tolist(), strict=True):
        while high >= stop:
            before = [slab[:, -1].clone() for slab in held]
            first, held = next(stream)
            stop = first + held[0].shape[1]
        lower = [slab[:, low - first] for slab in held] if low >= first else before
        if weight:
            lower = [torch.lerp(a, slab[:, high - first], weight) for a, slab in zip(lower, held, strict=True)]
        yield lower
    for _ in stream:  # slices beyond the scan's last; drawing them finishes the engine's counts
        pass


def _slice_classes(planes: Sequence[_Plane]) -> Tensor:
    """Class indices (H', W') of a slice of the scan."""
    corners = (corner for plane in planes for corner in _corner_classes(plane))
    classes = next(corners)
    mixed = torch.zeros(classes.shape, dtype=torch.bool)
    for corner in corners:
        mixed |= classes != corner
    row, column = mixed.nonzero(as_tuple=True)
    if len(row):
        logits = [_interpolate(plane, row, column) for plane in planes]
        best = logits[0] if len(logits) == 1 else _mean_probabilities(logits)
        classes[row, column] = best.max(dim=0).indices.to(classes.dtype)
    return classes


def _corner_classes(plane: _Plane) -> Iterator[Tensor]:
    """The highest class (H', W') at the four neighbours of every target voxel, one neighbour after the other."""
    top = plane.logits.max(dim=0).indices.to(torch.int16)  # (H, W)
    for rows in (plane.rows.low, plane.rows.high):
        for columns in (plane.columns.low, plane.columns.high):
            yield top[rows][:, columns]


def _interpolate(plane: _Plane, row: Tensor, column: Tensor) -> Tensor:
    """Logits (K, N) at N voxels of the target plane."""
    width = plane.logits.shape[2]
    flat = plane.logits.flatten(1)  # (K, H * W)
    across = plane.columns.weight[column]

    def along_columns(at: Tensor) -> Tensor:
        first = at * width
        low, high = (flat.index_select(1, first + side[column]) for side in (plane.columns.low, plane.columns.high))
        return torch.lerp(low, high, across)

    low, high = along_columns(plane.rows.low[row]), along_columns(plane.rows.high[row])
    return torch.lerp(low, high, plane.rows.weight[row])


def _whole_plane(plane: _Plane) -> Tensor:
    """Logits (K, H', W') at every voxel of the target plane."""
    rows, columns = plane.rows, plane.columns
    tall = torch.lerp(plane.logits[:, rows.low], plane.logits[:, rows.high], rows.weight[:, None])  # (K, H', W)
    return torch.lerp(tall[:, :, columns.low], tall[:, :, columns.high], columns.weight)


def _mean_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Mean over members of the softmax over the first axis."""
    total = logits[0].softmax(dim=0)
    for other in logits[1:]:
        total += other.softmax(dim=0)
    return total / len(logits)
