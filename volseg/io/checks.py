"""Checks of a scan and of its label: channels, values and grids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from volseg.errors import DataError, GeometryError
from volseg.geometry.ops import in_order_of
from volseg.geometry.volume import Mask, Volume
from volseg.io.cases import Case
from volseg.io.labels import LabelMap
from volseg.io.volumes import check_image, read_channels, read_mask


def load_case(
    case: Case, channels: Sequence[str], label_map: LabelMap, *, resample_channels: bool = False
) -> tuple[Volume, Mask]:
    """Read a labelled case and check everything that would spoil training silently.

    Args:
        case: Its files.
        channels: Names of the data set's channels.
        label_map: The classes; a label file may hold their values, the background's and the ignore label.
        resample_channels: Resample channels on other grids onto that of the first.

    Returns:
        Image (C, D, H, W) in the stored type and mask (D, H, W), both in the order of the image's file. A label file
        that holds the same voxels in another order is reordered.

    Raises:
        DataError: No label, unreadable file, NaN or constant image, wrong number of channels, unknown label value.
        GeometryError: Image and label lie on different grids.
    """
    if case.label is None:
        raise DataError("the case has no label", file=case.images[0], hint="add its label file or remove the image")
    volume = read_channels(case.images, resample=resample_channels)
    check_channels(volume, channels, case.images[0])
    check_image(volume, case.images)
    mask = read_mask(case.label)
    labels, grid = in_order_of(mask.labels[None], mask.grid, volume.grid)
    mask = Mask(labels[0], grid)
    if not volume.grid.same_as(mask.grid):
        raise GeometryError(
            "image and label lie on different grids",
            file=case.label,
            found=mask.grid.describe(),
            expected=f"{volume.grid.describe()} ({case.images[0].name})",
            hint="export both again on one grid",
        )
    check_label_values(mask, label_map, case.label)
    return volume, mask


def check_channels(volume: Volume, channels: Sequence[str], file: str | Path | None = None) -> None:
    """Check the number of channels of an image.

    Args:
        volume: The image (C, D, H, W).
        channels: Names of the channels of the data set, or of those that a model was trained with.
        file: Its file, for the message.

    Raises:
        DataError: The image has another number.
    """
    if len(volume.data) != len(channels):
        raise DataError(
            "wrong number of channels",
            file=file,
            found=len(volume.data),
            expected=f"{len(channels)} ({', '.join(channels)})",
            hint="give the same channels in the same order as in training",
        )


def check_label_values(mask: Mask, label_map: LabelMap, file: str | Path) -> None:
    """Check that a label file holds only values of the data set.

    Raises:
        DataError: It holds another value.
    """
    unknown = sorted(set(np.unique(mask.labels).tolist()) - label_map.known_values)
    if unknown:
        raise DataError(
            "the label holds a value that the data set does not declare",
            file=file,
            found=", ".join(map(str, unknown)),
            expected=", ".join(map(str, sorted(label_map.known_values))),
            hint="correct the label file, or name the value in dataset.json",
        )
