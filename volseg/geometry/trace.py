"""Record of what preprocessing did to a scan's grid, which is applied to labels and inverted for masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from volseg.errors import GeometryError
from volseg.geometry import ops
from volseg.geometry.grid import Grid
from volseg.geometry.resample import Matrices, image_matrices

StepKind = Literal["reorient", "crop", "resample"]


@dataclass(frozen=True)
class Step:
    """One change of the grid.

    Attributes:
        kind: What was done.
        source: The grid before.
        target: The grid after.
        start: For a crop, the first voxel kept, ``(d, h, w)`` on ``source``; zeros otherwise.
    """

    kind: StepKind
    source: Grid
    target: Grid
    start: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class AxisMap:
    """Where the voxels of one axis lie on another grid: ``working_index = scale * index + offset``."""

    scale: float
    offset: float


@dataclass(frozen=True)
class Trace:
    """The steps from a scan's own grid to the working grid, in order.

    Reorienting and cropping move whole voxels; only resampling interpolates, and it comes last, at most once. So a
    trace falls into two parts, which restoring needs apart:

    - ``cropped``: the grid after reorienting and cropping, still with the scan's own voxels. ``axis_maps`` says where
      each of its voxels lies on the working grid, axis by axis.
    - from ``cropped`` back to ``source`` nothing is interpolated: ``cropped_view``.

    Attributes:
        source: The scan's own grid.
        steps: What was done, first to last.

    Raises:
        GeometryError: The steps do not connect, or something follows a resampling.
    """

    source: Grid
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        grid = self.source
        for number, step in enumerate(self.steps):
            if step.source != grid:
                raise GeometryError(f"step {number} of the trace does not start where the one before it ended")
            if step.kind == "resample" and number < len(self.steps) - 1:
                raise GeometryError("a trace ends with its resampling", found=[s.kind for s in self.steps])
            grid = step.target

    @property
    def target(self) -> Grid:
        """The working grid."""
        return self.steps[-1].target if self.steps else self.source

    @property
    def cropped(self) -> Grid:
        """The grid after reorienting and cropping, before resampling (the working grid if nothing was resampled)."""
        resampled = bool(self.steps) and self.steps[-1].kind == "resample"
        return self.steps[-1].source if resampled else self.target

    def reorient(self, data: NDArray[Any], codes: str) -> tuple[NDArray[Any], Trace]:
        """Apply ``ops.reorient`` to data on ``target`` and record it."""
        data, grid = ops.reorient(data, self.target, codes)
        return data, self._with("reorient", grid)

    def crop(self, data: NDArray[Any], start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], Trace]:
        """Apply ``ops.crop`` to data on ``target`` and record it."""
        data, grid = ops.crop(data, self.target, start, stop)
        d, h, w = (int(index) for index in start)
        return data, self._with("crop", grid, (d, h, w))

    def plan_resample(self, spacing_mm: Sequence[float]) -> tuple[Trace, Matrices]:
        """Record a resampling that is done later, slab by slab: the new trace, and the matrix of each axis."""
        grid, matrices = image_matrices(self.target, spacing_mm)
        return (self if grid == self.target else self._with("resample", grid)), matrices

    def _with(self, kind: StepKind, target: Grid, start: tuple[int, int, int] = (0, 0, 0)) -> Trace:
        return Trace(self.source, (*self.steps, Step(kind, self.target, target, start)))

    def replay_labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Apply the same steps to labels ``(D, H, W)`` on ``source``; the result lies on ``target``."""
        _check_shape(labels, self.source)
        for step in self.steps:
            if step.kind == "reorient":
                labels = ops.permute_and_flip(labels, *_axis_order(step))
            elif step.kind == "crop":
                labels = labels[_box(step)]
            else:
                labels, _ = ops.resample_labels(labels, step.source, step.target.spacing_mm)
        return labels

    def axis_maps(self) -> tuple[AxisMap, AxisMap, AxisMap]:
        """For each axis of ``cropped``, the map from its voxel index to the index on ``target``.

        Both grids have the same axes; a map is the identity (scale 1, offset 0) along an axis that was not resampled.
        """
        before, after = self.cropped, self.target
        scales = ops.index_scales(after, before)
        d, h, w = (
            AxisMap(scale, (n_after - 1) / 2 - scale * (n_before - 1) / 2)
            for scale, n_before, n_after in zip(scales, before.shape, after.shape, strict=True)
        )
        return d, h, w

    def cropped_view(self, data: NDArray[Any]) -> NDArray[Any]:
        """The part of an array ``(..., D, H, W)`` on ``source`` that became ``cropped``, in its axis order (a view).

        Writing into the view fills the array in the scan's own order: no copy is needed to get there.
        """
        for step in self.steps:
            if step.kind == "reorient":
                data = ops.permute_and_flip(data, *_axis_order(step))
            elif step.kind == "crop":
                index: tuple[Any, ...] = (..., *_box(step))
                data = data[index]
        return data

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain JSON values; ``from_dict`` restores it exactly."""
        steps = [{"kind": s.kind, "target": s.target.to_dict(), "start": list(s.start)} for s in self.steps]
        return {"source": self.source.to_dict(), "steps": steps}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trace:
        """Rebuild a trace from ``to_dict``.

        Raises:
            GeometryError: The values are not those of a trace.
        """
        try:
            trace = cls(Grid.from_dict(values["source"]))
            for step in values["steps"]:
                if step["kind"] not in get_args(StepKind):
                    raise GeometryError("unknown step in a trace", found=step["kind"], expected=get_args(StepKind))
                d, h, w = (int(index) for index in step["start"])
                trace = trace._with(cast(StepKind, step["kind"]), Grid.from_dict(step["target"]), (d, h, w))
        except (KeyError, TypeError, ValueError) as error:
            raise GeometryError("this is not a stored trace", found=repr(error)) from error
        return trace


def _box(step: Step) -> tuple[slice, ...]:
    """The voxels of ``step.source`` that a crop kept."""
    return tuple(slice(a, a + n) for a, n in zip(step.start, step.target.shape, strict=True))


def _axis_order(step: Step) -> tuple[list[int], list[bool]]:
    """The old axis behind each new one and whether it was reversed, read off the two affines.

    Exact where the orientation letters are not: between two directions (45 degrees) rounding decides them.
    """
    old, new = step.source.affine[:3, :3].T, step.target.affine[:3, :3].T
    order = [int(np.argmin(np.minimum(*(abs(old - sign * axis).sum(axis=1) for sign in (1, -1))))) for axis in new]
    return order, [float(old[source] @ axis) < 0 for source, axis in zip(order, new, strict=True)]


def _check_shape(labels: NDArray[Any], grid: Grid) -> None:
    if labels.shape != grid.shape:
        raise GeometryError("the labels do not fit the trace", found=labels.shape, expected=grid.shape)
