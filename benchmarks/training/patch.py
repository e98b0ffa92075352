"""A plan of given sizes, without a data set, from which a network for noise is built."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """The fields of a plan that a network is built from; isotropic voxels."""

    patch_size: tuple[int, int, int]
    token_stride: int = 8
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    decoder_strides: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))
    class_names: tuple[str, ...] = ("background", "one", "two")
    region_indices: tuple[tuple[int, ...], ...] = ()
    num_classes: int = 3
    num_channels: int = 1
