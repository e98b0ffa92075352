"""Memory estimate of a prediction, and the schedule that keeps it within a limit."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from volseg.errors import ConfigError
from volseg.inference.sliding.columns import Flips
from volseg.inference.sliding.windows import Layout
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan

logger = logging.getLogger(__name__)

MOST_ENCODINGS = 1.3
"""Largest mean number of encodings per slice where the tokens do not fit."""
DEFAULT_BYTES = 4_000_000_000
"""Limit of a prediction's memory if none is given and this is enough."""
FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Amount of work per step.

    Attributes:
        windows: Depth windows per slab; ``None`` puts all of them into one.
        keep_tokens: Keep the tokens that the next slab needs too; otherwise their slices are encoded again.
        chunk: Slices encoded at a time.
        batch: Windows decoded at a time.
    """

    windows: int | None = None
    keep_tokens: bool = True
    chunk: int = 16
    batch: int = 1

    def groups(self, starts: Sequence[int]) -> list[list[int]]:
        """Return the depth windows of each slab, by their first slices."""
        size = len(starts) if self.windows is None else self.windows
        return [list(starts[at : at + size]) for at in range(0, len(starts), size)]

    def encodings(self, layout: Layout) -> float:
        """Return the mean number of encodings per slice."""
        if self.keep_tokens:
            return 1.0
        spans = (group[-1] - group[0] + layout.window[0] for group in self.groups(layout.starts[0]))
        return sum(spans) / layout.padded[0]


WHOLE = Schedule()
"""Schedule with the whole volume as one slab."""


@dataclass(frozen=True)
class Footprint:
    """Memory of a prediction in bytes.

    Attributes:
        fixed: Activations of the networks, and slices that are being restored.
        per_slice: Logits, weights and input per slice of a slab.
        column: Tokens of one window column per slice.
        kept: Tokens of all window columns and flips per slice.
    """

    fixed: int
    per_slice: int
    column: int
    kept: int

    def of(self, schedule: Schedule, layout: Layout) -> int:
        """Return the sum in bytes for a schedule."""
        groups = schedule.groups(layout.starts[0])
        slices = max(group[-1] - group[0] for group in groups) + layout.window[0]
        shared = max((a[-1] + layout.window[0] - b[0] for a, b in itertools.pairwise(groups)), default=0)
        kept = self.kept * shared if schedule.keep_tokens else 0
        return self.fixed + (self.per_slice + self.column) * slices + kept


def choose_schedule(
    models: Sequence[SegmentationNetwork],
    plan: Plan,
    layout: Layout,
    flips: Flips,
    stored_plane: int,
    max_bytes: int | None,
    plans: int = 1,
) -> Schedule:
    """Choose the thinnest slab that keeps its tokens; if they do not fit, the thinnest that encodes few slices again.

    Args:
        models: Networks of one plan.
        plan: Their plan.
        layout: The volume's windows.
        flips: Mirrored copies.
        stored_plane: Stored voxels per working slice, all channels.
        max_bytes: Limit of the estimate; ``None`` is 4 GB, or as little as possible if that is not enough.
        plans: Number of plans of an ensemble that run side by side; each gets an equal share.

    Raises:
        ConfigError: A limit is given and not even the thinnest slab fits.
    """
    batch = 1 if next(models[0].parameters(), torch.empty(0)).device.type == "cpu" else 4
    schedules = [
        *(Schedule(windows=size, chunk=chunk, batch=size) for size, chunk in ((batch, 16), (1, 16), (1, 4))),
        *(Schedule(windows=n, keep_tokens=False, chunk=4) for n in range(2, len(layout.starts[0]) + 1)),
    ]
    bytes_needed = {
        schedule: plans * footprint(models, plan, layout, flips, stored_plane, schedule).of(schedule, layout)
        for schedule in schedules
        if schedule.encodings(layout) <= MOST_ENCODINGS
    }
    for schedule, needed in bytes_needed.items():
        if needed <= (DEFAULT_BYTES if max_bytes is None else max_bytes):
            return schedule
    smallest = min(bytes_needed, key=bytes_needed.__getitem__)
    if max_bytes is None:
        logger.info("prediction needs about %.1f GB beside the model and the scan", bytes_needed[smallest] / 1e9)
        return smallest
    raise ConfigError(
        "the scan cannot be predicted within so little memory",
        found=f"a limit of {max_bytes / 1e9:.3g} GB",
        expected=f"at least {bytes_needed[smallest] / 1e9:.3g} GB beside the model, the scan and its mask",
        hint="raise --max-memory, or predict without --tta",
    )


def footprint(
    models: Sequence[SegmentationNetwork],
    plan: Plan,
    layout: Layout,
    flips: Flips,
    stored_plane: int,
    schedule: Schedule,
) -> Footprint:
    """Estimate the memory of a prediction: tensors are counted, temporary ones of the layers by rules of thumb."""
    plane = layout.padded[1] * layout.padded[2]
    logits = len(models) * plan.num_classes
    tokens, pixels = _token_floats(models, plan)
    columns = len(layout.starts[1]) * len(layout.starts[2])
    window = layout.window[0] * layout.window[1] * layout.window[2]
    decoding = max((_floats_per_voxel(model, plan.num_classes) for model in models), default=0) * window
    encoding = schedule.chunk * (pixels + 8 * tokens)  # queries, keys, values and the hidden layer of one block
    image = 3 * plan.num_channels * plane + 2 * stored_plane  # held, concatenated, and in preparation
    return Footprint(
        fixed=FLOAT * (decoding * schedule.batch + encoding + 3 * logits * max(plane, stored_plane)),
        per_slice=FLOAT * ((logits + 1) * plane + image),
        column=FLOAT * 2 * tokens,  # the pieces and their concatenation
        kept=FLOAT * tokens * columns * len(flips.plane),
    )


def _token_floats(models: Sequence[SegmentationNetwork], plan: Plan) -> tuple[int, int]:
    """Count the floats of the taps of one slice of a window, over all encoders, and of the largest slice image."""
    tokens = pixels = 0
    positions = (plan.patch_size[1] // plan.token_stride) * (plan.patch_size[2] // plan.token_stride)
    for encoder in {id(model.encoder): model.encoder for model in models}.values():
        if encoder is not None:
            tokens += positions * sum(encoder.spec.channels)
            pixels = max(pixels, positions * encoder.patch**2 * 2 * plan.num_channels)  # slice and neighbours
    return tokens, pixels


def _floats_per_voxel(model: SegmentationNetwork, classes: int) -> int:
    """Estimate the floats that decoding needs per voxel of a window."""
    return 8 * model.features + 2 * classes
