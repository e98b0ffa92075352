"""Checks of a labelled case: everything that would spoil training silently."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from volseg.errors import DataError, GeometryError
from volseg.geometry.volume import Mask, Volume
from volseg.io.cases import Case
from volseg.io.volumes import check_image, read_channels, read_mask


def load_case(case: Case, channels: int, label_values: Collection[int]) -> tuple[Volume, Mask]:
    """Reads a labelled case and checks everything that would spoil training silently.

    Args:
        case: Its files.
        channels: Channels the data set declares.
        label_values: Every value a label file may hold (background and ignore included).

    Returns:
        Image (C, D, H, W) in the stored type and mask (D, H, W), both in file order, on grids that agree.

    Raises:
        DataError: No label, unreadable file, NaN or constant image, wrong number of channels, unknown label value.
        GeometryError: Image and label lie on different grids.
    """
    if case.label is None:
        raise DataError("the case has no label", file=case.images[0], hint="add its label file or remove the image")
    volume = read_channels(case.images)
    if volume.data.shape[0] != channels:
        raise DataError(
            "wrong number of channels", file=case.images[0], found=volume.data.shape[0], expected=f"{channels}"
        )
    check_image(volume, case.images[0])
    mask = read_mask(case.label)
    if not volume.grid.same_as(mask.grid):
        raise GeometryError(
            "image and label lie on different grids",
            file=case.label,
            found=mask.grid.describe(),
            expected=f"{volume.grid.describe()} ({case.images[0].name})",
            hint="export both again on one grid",
        )
    unknown = sorted(set(np.unique(mask.labels).tolist()) - set(label_values))
    if unknown:
        raise DataError(
            "the label holds a value that the data set does not declare",
            file=case.label,
            found=", ".join(map(str, unknown)),
            expected=", ".join(map(str, sorted(label_values))),
            hint="correct the label file, or name the value in dataset.json",
        )
    return volume, mask
