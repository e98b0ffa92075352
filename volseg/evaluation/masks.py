"""Masks of one case as label maps: reading, merging of class files, empty masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, GeometryError
from volseg.evaluation.sources import MaskSource
from volseg.geometry.grid import Grid
from volseg.geometry.ops import in_order_of
from volseg.io.itk import segment_values
from volseg.io.labels import LabelMap, Values, check_segment_names, plain_name
from volseg.io.volumes import read_mask
from volseg.metrics.overlap import label_values

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Layer:
    """One label map, shape (D, H, W), and the classes that it contains."""

    labels: Labels
    classes: dict[str, Values]


@dataclass(frozen=True)
class CaseMask:
    """All masks of a case; overlapping classes, as class files may have, lie in different layers.

    Attributes:
        grid: Grid of the masks.
        layers: Label maps; every class is in exactly one of them.
        missing_classes: Classes without a file.
        unknown_values: Values that are not in the label map.
    """

    grid: Grid
    layers: tuple[Layer, ...]
    missing_classes: tuple[str, ...] = ()
    unknown_values: tuple[int, ...] = ()

    def in_order_of(self, grid: Grid, tolerance_mm: float) -> CaseMask:
        """Return the masks in the voxel order of a grid that has the same voxels; unchanged if it has others."""
        ordered = [in_order_of(layer.labels[None], self.grid, grid, tolerance_mm) for layer in self.layers]
        layers = tuple(Layer(labels[0], layer.classes) for (labels, _), layer in zip(ordered, self.layers, strict=True))
        return replace(self, grid=ordered[0][1], layers=layers)

    def on(self, grid: Grid) -> CaseMask:
        """Return the masks on another grid of the same shape; unchanged if the shapes differ."""
        return replace(self, grid=grid) if grid.shape == self.grid.shape else self


def read_case_mask(source: MaskSource, label_map: LabelMap | None) -> CaseMask:
    """Read the masks of one case.

    Args:
        source: Files of the case.
        label_map: The classes; ``None`` makes every value that occurs a class with the value as its name.

    Raises:
        DataError: A file cannot be read as a mask.
        GeometryError: Class files lie on different grids.
    """
    if source.file is None:
        if label_map is None:
            raise DataError(
                "masks with one file per class need a label map",
                file=source.describe(),
                hint="give --dataset dataset.json",
            )
        return _read_class_files(source, label_map)
    mask = read_mask(source.file)
    values = label_values(mask.labels)
    if label_map is None:
        return CaseMask(mask.grid, (Layer(mask.labels, {str(value): (value,) for value in values if value}),))
    check_segment_names(segment_values(source.file), label_map, source.file)
    unknown = tuple(sorted(set(values) - label_map.known_values))
    return CaseMask(mask.grid, (Layer(mask.labels, label_map.classes),), unknown_values=unknown)


def empty_case_mask(grid: Grid, label_map: LabelMap) -> CaseMask:
    """Return a mask of background, which stands in for a missing prediction."""
    return CaseMask(grid, (Layer(np.zeros(grid.shape, np.uint8), label_map.classes),))


def _read_class_files(source: MaskSource, label_map: LabelMap) -> CaseMask:
    """Merge the files of single classes into label maps, one more only where classes overlap."""
    files = {plain_name(name): path for name, path in source.class_files.items()}
    class_paths = {name: files[plain_name(name)] for name in label_map.classes if plain_name(name) in files}
    if not class_paths:
        raise DataError(
            "no file has the name of a class",
            file=source.describe(),
            found=", ".join(sorted(source.class_files)[:8]),
            expected=", ".join(label_map.classes),
        )
    grid: Grid | None = None
    layers: list[Layer] = []
    for name, path in class_paths.items():
        mask = read_mask(path)
        grid = grid or mask.grid
        labels, order = in_order_of(mask.labels[None], mask.grid, grid)
        if not order.same_as(grid):
            raise GeometryError(
                "the class files of a case lie on different grids",
                file=path,
                found=mask.grid.describe(),
                expected=grid.describe(),
            )
        _add_class(layers, name, label_map.classes[name], labels[0] != 0)
    assert grid is not None
    absent = {name: values for name, values in label_map.classes.items() if name not in class_paths}
    if absent:
        layers.append(Layer(np.zeros(grid.shape, np.uint8), absent))
    return CaseMask(grid, tuple(layers), missing_classes=tuple(absent))


def _add_class(layers: list[Layer], name: str, values: Values, inside: NDArray[np.bool_]) -> None:
    """Add a class to the first layer where its voxels and its values are free, or to a new layer."""
    for layer in layers:
        taken = {value for others in layer.classes.values() for value in others}
        if taken.isdisjoint(values) and not layer.labels[inside].any():
            layer.labels[inside] = values[0]
            layer.classes[name] = values
            return
    layers.append(Layer(np.zeros_like(inside, dtype=np.uint16), {}))
    _add_class(layers[-1:], name, values, inside)
