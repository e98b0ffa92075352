"""Whether the voxels of a label file are a label map: not an image, probabilities, or an interpolated mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, counted
from volseg.geometry.volume import Mask
from volseg.io.cases import listed
from volseg.io.labels import value_counts
from volseg.io.remarks import remark

PLANES = 32
"""Most planes of a label in which neighbours are compared, at regular distances."""
TOUCHING = 4
"""A value is scattered if its voxels touch other foreground values more than this many times as often as their own."""
FEWEST_IMAGE, SHARE_IMAGE = 20, 0.85
"""Fewest scattered values, and their share of all values, of an image or a map of probabilities ..."""
FEWEST_MIXED, SHARE_MIXED = 5, 0.55
"""... and of a mask that was interpolated or compressed with losses. The share is 0.04 in brain maps of 50
structures at 1 mm, 0.25 at 4 mm, and 0.63 at 8 mm; 1.00 in MRI and CT; 0.6 to 1 in blurred masks."""


def scattered_values(labels: NDArray[Any]) -> tuple[int, int]:
    """Count the foreground values of a mask, and those that are scattered.

    In a label map, neighbours mostly have the same value, however many structures there are; in an image or a map of
    probabilities, each value lies among other ones. Small structures in the background are not scattered.

    Args:
        labels: (D, H, W), any integer type.

    Returns:
        Values that occur beside other foreground voxels, their own included, and how many of them are scattered.
    """
    low = int(labels.min())
    count = int(labels.max()) - low + 1
    same, other = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for index in np.unique(np.linspace(0, labels.shape[2] - 1, PLANES).astype(int)):
        plane = labels[:, :, index].astype(np.int64) - low
        for first, second in ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])):
            equal, foreground = first == second, (first != -low) & (second != -low)
            same += np.bincount(first[equal & foreground], minlength=count)
            for side in (first, second):
                other += np.bincount(side[foreground & ~equal], minlength=count)
    return int(np.count_nonzero(same + other)), int(np.count_nonzero(other > TOUCHING * same))


def check_is_label_map(mask: Mask, file: str | Path) -> None:
    """Check that a file holds a label map; one that is doubtful is a remark.

    Raises:
        DataError: It certainly holds an image, or probabilities.
    """
    values, scattered = scattered_values(mask.labels)
    text = f"{values} different values, {scattered} of them scattered among other values"
    if is_image(values, scattered):
        raise DataError(
            "the label holds values in a continuous range: it is an image, or a map of probabilities",
            file=file,
            found=text,
            expected="a label map, in which most neighbouring voxels have the same value",
            hint="check that images and labels are not swapped; make a label map of probabilities by a threshold",
            kind="label-is-image",
        )
    if is_mixed(values, scattered):
        remark("label-scattered", Path(file), text)


def check_not_negative(mask: Mask, file: str | Path) -> None:
    """Check that no label is negative, which no label map can declare.

    Raises:
        DataError: One is; the message counts their voxels.
    """
    if mask.labels.dtype.kind == "u" or mask.labels.min() >= 0:
        return
    counts = [(value, count) for value, count in value_counts(mask.labels).items() if value < 0]
    raise DataError(
        "the label holds a negative value",
        file=file,
        found=listed([f"{value} ({counted(count, 'voxel')})" for value, count in counts]),
        expected="0 for the background, and positive values for the classes",
        hint="renumber the labels, or export them in an unsigned type (in int8, 200 becomes -56)",
        kind="negative-value",
    )


def is_image(values: int, scattered: int) -> bool:
    """Return whether values counted by :func:`scattered_values` are certainly those of no label map."""
    return scattered >= max(FEWEST_IMAGE, SHARE_IMAGE * values)


def is_mixed(values: int, scattered: int) -> bool:
    """Return whether values counted by :func:`scattered_values` are doubtful as those of a label map."""
    return scattered >= max(FEWEST_MIXED, SHARE_MIXED * values)
