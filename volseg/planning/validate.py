"""Checks of the fields of a plan, alone and together; each raises a ConfigError."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from volseg.errors import ConfigError, DataError
from volseg.geometry.volume import LARGEST_LABEL
from volseg.io.description import LONGEST_NAME, is_dataset_name
from volseg.io.labels import check_trainable, make_label_map
from volseg.planning import rules

if TYPE_CHECKING:
    from volseg.planning.plan import Plan

LARGEST_PATCH_VOXELS = 512**3
"""A network of 16 channels holds over 8 GB for one layer of such a patch."""
MOST_CLASSES = 32_767
"""Class indices are stored as int16."""


def check_positive(key: str, values: tuple[float, ...]) -> None:
    """Check that all values are finite and > 0."""
    if not all(np.isfinite(value) and value > 0 for value in values):
        raise ConfigError(f"{key} is out of range", found=list(values), expected="> 0")


def _check_regions(plan: Plan) -> None:
    """Check that the regions are the classes of the labels, and that masks can hold them."""
    regions = plan.regions or {}
    names = {name for name, value in plan.labels.items() if value != 0}
    if names != set(regions):
        expected = f"those of plan.labels: {', '.join(sorted(names))}"
        raise ConfigError("plan.regions has other classes", found=", ".join(regions), expected=expected)
    try:
        make_label_map(regions)
        check_trainable(plan.label_map)
    except DataError as error:
        raise ConfigError("plan.regions is invalid", found=error) from error
    if not plan.label_map.regions:
        raise ConfigError("plan.regions has no region", found=regions, expected="null, or a class of several values")


def check_names(plan: Plan, version: int) -> None:
    """Check version, modality, channels and labels."""
    if plan.version != version:
        raise ConfigError("the plan is of another version", found=plan.version, expected=version)
    for key, value, allowed in (
        ("modality", plan.modality, ("ct", "mri")),
        ("slice_axis", plan.slice_axis, tuple(rules.ORIENTATIONS)),
        ("token_stride", plan.token_stride, tuple(sorted(rules.TOKEN_STRIDES))),
    ):
        if value not in allowed:
            raise ConfigError(f"plan.{key} has no such choice", found=value, expected=", ".join(map(str, allowed)))
    if not is_dataset_name(plan.dataset):
        expected = f"printable text of at most {LONGEST_NAME} characters"
        raise ConfigError("plan.dataset cannot be used", found=repr(plan.dataset)[:100], expected=expected)
    values = list(plan.labels.values())
    valid = all(0 <= value <= LARGEST_LABEL for value in values) and 2 <= len(values) <= MOST_CLASSES
    if not valid or 0 not in values or len(set(values)) < len(values):
        expected = f"background 0 and distinct values from 1 to {LARGEST_LABEL}, {MOST_CLASSES} classes at most"
        raise ConfigError("plan.labels is invalid", found=plan.labels, expected=expected)
    if plan.regions is not None:
        _check_regions(plan)
        values = [*values, *plan.label_values]
    if plan.ignore_label is not None and plan.ignore_label in values:
        raise ConfigError("plan.ignore_label is also a class", found=plan.ignore_label)
    if plan.ignore_label is not None and not 0 < plan.ignore_label <= LARGEST_LABEL:
        raise ConfigError("plan.ignore_label is invalid", found=plan.ignore_label, expected=f"1 to {LARGEST_LABEL}")
    if not plan.channels or len(plan.intensity) != len(plan.channels):
        raise ConfigError(
            "plan.intensity must have one entry for each channel",
            found=len(plan.intensity),
            expected=f"{len(plan.channels)} ({', '.join(plan.channels)})",
        )
    if plan.ranges is not None and {len(plan.ranges.low), len(plan.ranges.high)} != {len(plan.channels)}:
        found = f"low: {len(plan.ranges.low)}, high: {len(plan.ranges.high)}"
        raise ConfigError("plan.ranges must have one entry for each channel", found=found, expected=len(plan.channels))


def check_sizes(plan: Plan) -> None:
    """Check spacing, strides, patch and axes, and that they fit together."""
    check_positive("plan.spacing_mm", plan.spacing_mm)
    check_positive("plan.patch_size", plan.patch_size)
    if math.prod(plan.patch_size) > LARGEST_PATCH_VOXELS:
        expected = f"at most {LARGEST_PATCH_VOXELS} voxels (512 x 512 x 512)"
        raise ConfigError("plan.patch_size is too large", found=list(plan.patch_size), expected=expected)
    levels = len(plan.decoder_strides)
    in_plane = [(2**level, 2**level) for level in range(levels)]
    depth = [stride[0] for stride in plan.decoder_strides]
    steps = [after in (before, 2 * before) for before, after in pairwise(depth)]
    doubling = [stride[1:] for stride in plan.decoder_strides] == in_plane and 2 ** (levels - 1) >= plan.token_stride
    if not doubling or depth[0] != 1 or not all(steps):
        raise ConfigError(
            "plan.decoder_strides does not fit plan.token_stride",
            found=[list(stride) for stride in plan.decoder_strides],
            expected=f"levels from [1, 1, 1] on, doubling in plane up to {plan.token_stride} or further, "
            "each depth the one before or its double",
            hint="to have them derived, omit plan.decoder_strides from the command line or the configuration; "
            "make a plan file anew with volseg plan",
        )
    deepest = plan.decoder_strides[-1]
    rounded = [-(-size // step) * step for size, step in zip(plan.patch_size, deepest, strict=True)]
    if rounded != list(plan.patch_size):
        raise ConfigError(
            "plan.patch_size is not a multiple of the deepest decoder stride",
            found=list(plan.patch_size),
            expected=f"multiples of {list(deepest)}",
            hint=f"use {rounded}, or leave plan.decoder_strides out, or set another plan.token_stride",
        )
    if list(plan.mirror_axes) != sorted(set(plan.mirror_axes) & {0, 1, 2}):
        raise ConfigError("plan.mirror_axes is invalid", found=list(plan.mirror_axes), expected="some of 0, 1, 2")
