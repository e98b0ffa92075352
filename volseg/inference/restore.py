"""Restoring: logits on the working grid become a mask on the scan's own grid, one slice at a time.

Of classes that exclude each other a voxel takes the most probable one. Regions are decided each on its own, at a
probability of 0.5, and painted one over the other in the order of the network's outputs, as in nnU-Net.

The mask is the argmax of interpolated logits, but a CPU interpolates few. An interpolated value is a weighted mean
of its neighbours, so a class that is the highest at all four neighbours is also the highest between them. Only voxels
whose neighbours disagree, a shell around each organ, are interpolated, and no volume of K classes is held at the
scan's resolution. The same holds for an ensemble: where all members agree, so does the mean of their probabilities. And
it holds for the region that is painted last at all neighbours: it is inside, and all later ones outside, between them.
"""

from __future__ import annotations

from collections import deque
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

SLICES_BEHIND = 16
"""Slices of a mask that may be on their way from a GPU."""
LogitSlabs = Iterable[tuple[int, Sequence[Tensor]]]
"""Slabs of the working grid in ascending order: index of the first slice, and logits (K, n, H, W) of each model."""


class SliceOutput(Protocol):
    """An output that is written slice by slice, in addition to the mask."""

    def write(self, index: int, probabilities: Tensor) -> None:
        """Write the probabilities (K, H, W) of slice ``index`` of ``trace.cropped``."""


@dataclass(frozen=True)
class Member:
    """The logits of an ensemble's models that share a plan.

    Attributes:
        slabs: Logits from the sliding window.
        trace: Steps from the scan's grid to the working grid.
        nearest_depth: Use the nearest slice along depth instead of interpolating (thick slices).
    """

    slabs: LogitSlabs
    trace: Trace
    nearest_depth: bool = False


def logits_to_mask(logits: Tensor, trace: Trace, plan: Plan) -> NDArray[Any]:
    """Interpolate logits linearly to the scan's voxels and return their argmax; see :func:`restore_mask`.

    Args:
        logits: (K, D, H, W) float32 on ``trace.target``.
        trace: Steps from the scan's grid to the working grid.
        plan: Supplies the values, the regions and ``nearest_depth``.

    Returns:
        (D, H, W) label values on the scan's grid.
    """
    assert logits.shape == (plan.num_classes, *trace.target.shape), (logits.shape, trace.target.shape)
    member = Member([(0, [logits])], trace, plan.nearest_depth)
    return restore_mask([member], plan.mask_values, regions=plan.regions is not None)


def restore_mask(
    members: Sequence[Member],
    mask_values: Sequence[int],
    outputs: Sequence[SliceOutput] = (),
    *,
    regions: bool = False,
) -> NDArray[Any]:
    """Interpolate logits linearly to the scan's voxels, average the members' probabilities, and decide.

    Members with ``nearest_depth`` use the nearest slice along depth. Beyond the outermost slice, row or column of the
    working grid its value is repeated. Cropped voxels are background.

    Args:
        members: One or several members, whose working grids may differ.
        mask_values: Value of the background and of each other class, or of each region.
        outputs: Further outputs, which receive the probabilities of each slice.
        regions: Whether the outputs of the network are regions, which have no background among them.

    Returns:
        (D, H, W) label values on the scan's grid, uint8 if they fit, else uint16.

    Raises:
        ConfigError: The members differ in slice axis or cropping.
    """
    trace = members[0].trace
    if any(member.trace.cropped != trace.cropped for member in members):
        raise ConfigError(
            "models of one ensemble need the same slice axis and cropping",
            found=" and ".join(sorted({member.trace.cropped.describe() for member in members})),
            hint="use models whose plans agree in slice_axis and crop_nonzero",
        )
    values = np.array(mask_values, np.uint8 if max(mask_values) <= 255 else np.uint16)
    labels = np.full(trace.source.shape, values[0])
    target = trace.cropped_view(labels)
    for index, classes in enumerate(_on_cpu(_classes(members, outputs, regions))):
        target[index] = values[classes.numpy()]
    return labels


def _classes(members: Sequence[Member], outputs: Sequence[SliceOutput], regions: bool) -> Iterator[Tensor]:
    """Yield the class indices (H', W') of each slice of the scan; outputs receive its probabilities."""
    slices = (_slices(member) for member in members)
    for index, planes in enumerate(zip(*slices, strict=True)):
        all_planes = [plane for member in planes for plane in member]
        yield _slice_classes(all_planes, regions)
        if outputs:
            probabilities = _mean_probabilities([_whole_plane(plane) for plane in all_planes], regions).cpu()
            for output in outputs:
                output.write(index, probabilities)


def _on_cpu(slices: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the same slices on the CPU; those of a GPU are copied through pinned memory while it computes the next."""
    waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
    for values in slices:
        waiting.append(copied_to_cpu(values))
        if len(waiting) > (0 if waiting[-1][1] is None else SLICES_BEHIND):
            yield _arrived(*waiting.popleft())
    while waiting:
        yield _arrived(*waiting.popleft())


def copied_to_cpu(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Return values on the CPU, and the event after which they are valid; ``None`` if they are."""
    if values.device.type != "cuda":
        return values.cpu(), None
    copied = values.to("cpu", non_blocking=True)  # into pinned memory
    return copied, torch.cuda.current_stream(values.device).record_event()


def _arrived(values: Tensor, arrival: torch.cuda.Event | None) -> Tensor:
    if arrival is not None:
        arrival.synchronize()
    return values


@dataclass(frozen=True)
class _Neighbours:
    """For each target index: the source indices below and above it, and the weight of the upper one."""

    low: Tensor
    high: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> _Neighbours:
        """Return the same on another device."""
        return _Neighbours(self.low.to(device), self.high.to(device), self.weight.to(device))


@dataclass(frozen=True)
class _Plane:
    """Logits (K, H, W) of one slice of the scan, with the rows and columns of the working grid."""

    logits: Tensor
    rows: _Neighbours
    columns: _Neighbours


def _neighbours(axis: AxisMap, n_target: int, n_source: int, *, nearest: bool = False) -> _Neighbours:
    """Return the neighbours on the working grid of each index along one axis of the cropped grid."""
    position = (axis.scale * torch.arange(n_target, dtype=torch.float64) + axis.offset).clamp(0, n_source - 1)
    if nearest:
        position = torch.floor(position + HALF).clamp(max=n_source - 1)  # halves go up, as in geometry.interpolate
    low = position.floor().long()
    return _Neighbours(low, position.ceil().long(), (position - low).float())


def _slices(member: Member) -> Iterator[list[_Plane]]:
    """Yield, for each slice of the scan, the planes of the member's models, interpolated along depth."""
    trace = member.trace
    depth, rows, columns = (
        _neighbours(axis, n, m, nearest=member.nearest_depth and number == 0)
        for number, (axis, n, m) in enumerate(
            zip(trace.axis_maps(), trace.cropped.shape, trace.target.shape, strict=True)
        )
    )
    for planes in _along_depth(member.slabs, depth):
        if rows.weight.device != planes[0].device:
            rows, columns = rows.to(planes[0].device), columns.to(planes[0].device)
        yield [_Plane(plane, rows, columns) for plane in planes]


def _along_depth(slabs: LogitSlabs, depth: _Neighbours) -> Iterator[list[Tensor]]:
    """Yield the logits (K, H, W) of each model at each target slice; a slab is computed when it is needed."""
    stream = iter(slabs)
    first, stop = 0, 0
    slab: Sequence[Tensor] = ()  # (K, n, H, W) of each model, slices first to stop
    previous: list[Tensor] = []  # the last slice of the slab before, which the next target slice may need
    for low, high, weight in zip(depth.low.tolist(), depth.high.tolist(), depth.weight.tolist(), strict=True):
        while high >= stop:
            previous = [logits[:, -1].clone() for logits in slab]  # a view would keep the whole slab in memory
            first, slab = next(stream)
            stop = first + slab[0].shape[1]
        planes = [logits[:, low - first] for logits in slab] if low >= first else previous
        if weight:
            planes = [torch.lerp(a, logits[:, high - first], weight) for a, logits in zip(planes, slab, strict=True)]
        yield planes
    for _ in stream:  # slices beyond the scan's last: reading them completes the counts of the sliding window
        pass


def _slice_classes(planes: Sequence[_Plane], regions: bool) -> Tensor:
    """Return the class indices (H', W') of a slice of the scan; with regions the number of the last one, 0 for none.

    A GPU interpolates every voxel faster than it finds those at which the neighbours disagree.
    """
    if planes[0].logits.device.type != "cpu":
        return _best([_whole_plane(plane) for plane in planes], regions)
    corners = (corner for plane in planes for corner in _corner_classes(plane, regions))
    classes = next(corners)
    disagree = torch.zeros(classes.shape, dtype=torch.bool)
    for corner in corners:
        disagree |= classes != corner
    row, column = disagree.nonzero(as_tuple=True)
    if len(row):
        classes[row, column] = _best([_interpolate(plane, row, column) for plane in planes], regions)
    return classes


def _best(logits: Sequence[Tensor], regions: bool) -> Tensor:
    """Return the classes, int16, that the models decide for together: each has logits (K, ...)."""
    if len(logits) == 1:
        return _decided(logits[0], regions)
    return _decided(_mean_probabilities(logits, regions), regions, threshold=0.5)


def _decided(scores: Tensor, regions: bool, threshold: float = 0.0) -> Tensor:
    """Return the class with the highest score, or the number of the last region with a score above the threshold.

    Args:
        scores: (K, ...) logits or probabilities.
        regions: Whether these are regions, which are numbered from 1 on; 0 is none.
        threshold: Score of a region that is as probable as not: 0 for logits, 0.5 for probabilities.
    """
    if not regions:
        return scores.max(dim=0).indices.to(torch.int16)
    number = torch.zeros(scores.shape[1:], dtype=torch.int16, device=scores.device)
    for index, score in enumerate(scores, start=1):
        number[score > threshold] = index
    return number


def _corner_classes(plane: _Plane, regions: bool) -> Iterator[Tensor]:
    """Yield, for each of the four neighbours of the target voxels, the class (H', W') that is decided there."""
    top = _decided(plane.logits, regions)  # (H, W)
    for rows in (plane.rows.low, plane.rows.high):
        for columns in (plane.columns.low, plane.columns.high):
            yield top[rows][:, columns]


def _interpolate(plane: _Plane, row: Tensor, column: Tensor) -> Tensor:
    """Return the interpolated logits (K, N) at N voxels of the target plane."""
    width = plane.logits.shape[2]
    flat = plane.logits.flatten(1)  # (K, H * W)
    column_weight = plane.columns.weight[column]

    def along_columns(source_row: Tensor) -> Tensor:
        first = source_row * width
        low, high = (flat.index_select(1, first + side[column]) for side in (plane.columns.low, plane.columns.high))
        return torch.lerp(low, high, column_weight)

    low, high = along_columns(plane.rows.low[row]), along_columns(plane.rows.high[row])
    return torch.lerp(low, high, plane.rows.weight[row])


def _whole_plane(plane: _Plane) -> Tensor:
    """Return the interpolated logits (K, H', W') at every voxel of the target plane."""
    rows, columns = plane.rows, plane.columns
    stretched = torch.lerp(plane.logits[:, rows.low], plane.logits[:, rows.high], rows.weight[:, None])  # (K, H', W)
    return torch.lerp(stretched[:, :, columns.low], stretched[:, :, columns.high], columns.weight)


def _mean_probabilities(logits: Sequence[Tensor], regions: bool) -> Tensor:
    """Return the mean over models of the softmax over the first axis, or of the sigmoid of each region."""
    total = logits[0].sigmoid() if regions else logits[0].softmax(dim=0)
    for other in logits[1:]:
        total += other.sigmoid() if regions else other.softmax(dim=0)
    return total / len(logits)
