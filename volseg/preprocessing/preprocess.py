"""Preprocessing of scans and labels to the plan's grid, with the trace of what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.geometry.grid import Grid
from volseg.geometry.interpolate import apply_matrices
from volseg.geometry.ops import axis_order, nonzero_box
from volseg.geometry.resample import check_zoom
from volseg.geometry.trace import Trace
from volseg.geometry.volume import Volume
from volseg.io.checks import check_channels, load_case
from volseg.io.datasets import Case
from volseg.planning.fingerprint import spread
from volseg.planning.plan import Plan
from volseg.preprocessing.intensity import Scaling, normalize, scalings

IGNORE = -1
"""Class index of voxels that count neither in the loss nor in scores."""
LOCATIONS_PER_CLASS = 10_000
"""Most stored voxels per class on which patches are centred."""


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A training case on the plan's grid.

    Attributes:
        id: Name of the case.
        image: (C, D, H, W) float32, normalised.
        label: (D, H, W) class indices, int8 or int16; -1 is ignored.
        grid: The working grid.
        trace: Record of the way from the file's grid.
        region_indices: Class indices of each region; nothing where classes exclude each other.
    """

    id: str
    image: NDArray[np.float32]
    label: NDArray[Any]
    grid: Grid
    trace: Trace
    region_indices: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def locations(self) -> NDArray[np.int32]:
        """(N, 4): class or region, and voxel (d, h, w), as :func:`class_locations` gives them."""
        return class_locations(self.label, self.region_indices)


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image on the plan's grid that is computed slab by slab from the stored voxels.

    Attributes:
        stored: (C, D, H, W), reoriented and cropped, in the stored type (a view of the scan).
        scaling: Normalisation of each channel.
        matrices: Interpolation matrices along D, H and W; ``None`` where the axis is not resampled.
        trace: Record of the way from the file's grid to the working grid.
    """

    stored: NDArray[Any]
    scaling: tuple[Scaling, ...]
    matrices: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, NDArray[np.float64] | None]
    trace: Trace

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (D, H, W) of the working grid."""
        return self.trace.target.shape

    def slab(self, start: int, stop: int) -> NDArray[np.float32]:
        """Compute slices ``start <= d < stop`` of the working grid: (C, stop - start, H, W) float32, normalised."""
        depth, rows, columns = self.matrices
        low, high = self.stored_range(0, start, stop)
        slices = normalize(self.stored[:, low:high], self.scaling)
        if depth is not None:
            depth = depth[start:stop, low:high]
        if depth is None and rows is None and columns is None:
            return slices
        return apply_matrices(slices, (depth, rows, columns))

    def stored_range(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """Return the range of stored voxels along an axis that the working voxels ``[start, stop)`` depend on."""
        matrix = self.matrices[axis]
        if matrix is None:
            return start, stop
        used = np.flatnonzero(matrix[start:stop].any(axis=0))
        return int(used[0]), int(used[-1]) + 1


def check_spacing(grid: Grid, plan: Plan, file: str | Path | None = None) -> None:
    """Check that the voxels of a scan can be resampled to the plan's; see :func:`volseg.geometry.resample.check_zoom`.

    Raises:
        GeometryError: They are of another order of magnitude.
    """
    order, _ = axis_order(grid, plan.orientation)
    shape, spacing = [grid.shape[axis] for axis in order], [grid.spacing_mm[axis] for axis in order]
    check_zoom(shape, spacing, plan.spacing_mm, file=file)


def prepare_image(volume: Volume, plan: Plan) -> PreparedImage:
    """Reorient, crop to nonzero voxels if the plan says so, and measure; slabs are normalised and resampled later.

    Normalisation precedes resampling, so that zeros outside a nonzero mask are still exactly 0 when they are detected.

    Args:
        volume: Image (C, D, H, W) in file order.
        plan: Plan.

    Raises:
        DataError: The image has another number of channels than the plan.
        GeometryError: Its voxels are of another order of magnitude than the plan's.
    """
    check_channels(volume, plan.channels)
    check_spacing(volume.grid, plan)
    data, trace = Trace(volume.grid).reorient(volume.data, plan.orientation)
    if plan.crop_nonzero:
        data, trace = trace.crop(data, *nonzero_box(data))
    trace, matrices = trace.plan_resample(plan.spacing_mm)
    return PreparedImage(data, scalings(data, plan.intensity), matrices, trace)


def preprocess_image(volume: Volume, plan: Plan) -> tuple[Volume, Trace]:
    """Preprocess a whole image; see :func:`prepare_image`.

    Returns:
        Image (C, D, H, W) float32 on the working grid, and the Trace from the file's grid to it.
    """
    image = prepare_image(volume, plan)
    return Volume(image.slab(0, image.shape[0]), image.trace.target), image.trace


def preprocess_case(case: Case, plan: Plan) -> PreparedCase:
    """Read, check and preprocess a labelled case.

    Raises:
        DataError: A file cannot be used.
        GeometryError: Image and label lie on different grids, or their voxels are of another order of magnitude than
            the plan's.
    """
    volume, mask = load_case(case, plan.channels, plan.label_map)
    check_spacing(volume.grid, plan, case.images[0])
    image, trace = preprocess_image(volume, plan)
    label = class_indices(trace.replay_labels(mask.labels), plan)
    return PreparedCase(case.id, image.data, label, image.grid, trace, plan.region_indices)


def class_indices(labels: NDArray[Any], plan: Plan) -> NDArray[Any]:
    """Map file values (D, H, W) to class indices, and the ignore label to -1.

    Returns:
        (D, H, W) int8, or int16 for more than 127 label values.
    """
    dtype = np.int8 if len(plan.label_values) <= 127 else np.int16
    result = np.zeros(labels.shape, dtype=dtype)
    for index, value in enumerate(plan.label_values):
        result[labels == value] = index
    if plan.ignore_label is not None:
        result[labels == plan.ignore_label] = IGNORE
    return result


def class_locations(label: NDArray[Any], region_indices: Sequence[Sequence[int]] = ()) -> NDArray[np.int32]:
    """Return evenly spaced voxels of each foreground class, or of each region, to centre patches on.

    Args:
        label: (D, H, W) class indices.
        region_indices: Class indices of each region; nothing where classes exclude each other.

    Returns:
        (N, 4) int32: class index, or number of the region from 1 on, and (d, h, w); at most 10,000 rows for each, in
        this order.
    """
    locations = [np.zeros((0, 4), dtype=np.int32)]
    groups = dict(enumerate(region_indices, start=1)) or {index: (index,) for index in np.unique(label[label > 0])}
    for index, group in groups.items():
        inside = np.flatnonzero(np.isin(label, group))
        samples = inside[spread(len(inside), LOCATIONS_PER_CLASS)]
        voxels = np.stack(np.unravel_index(samples, label.shape), axis=1)
        locations.append(np.insert(voxels, 0, index, axis=1).astype(np.int32))
    return np.concatenate(locations)
