"""How much of a prediction is done at a time, so that it stays within a given memory."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from volseg.errors import ConfigError
from volseg.inference.sliding.columns import Flips, groups_by_encoder
from volseg.inference.sliding.windows import Layout
from volseg.planning.plan import Plan

logger = logging.getLogger(__name__)

MOST_ENCODINGS = 1.3
"""How often a slice may be encoded on average where the tokens do not fit."""
DEFAULT_BYTES = 4_000_000_000
"""What a prediction may hold where no bound is given and this suffices."""
FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How much is done at a time.

    Attributes:
        windows: Depth windows of a slab; ``None`` puts all of them into one.
        keep_tokens: Keep the tokens that the next slab needs too; otherwise their slices are encoded again.
        chunk: Slices that are encoded at a time.
        batch: Windows that are decoded at a time.
    """

    windows: int | None = None
    keep_tokens: bool = True
    chunk: int = 16
    batch: int = 1

    def groups(self, starts: Sequence[int]) -> list[list[int]]:
        """The depth windows of each slab, by their first slices."""
        size = len(starts) if self.windows is None else self.windows
        return [list(starts[at : at + size]) for at in range(0, len(starts), size)]

    def encodings(self, layout: Layout) -> float:
        """How often a slice is encoded on average."""
        if self.keep_tokens:
            return 1.0
        spans = (group[-1] - group[0] + layout.window[0] for group in self.groups(layout.starts[0]))
        return sum(spans) / layout.padded[0]


WHOLE = Schedule()
"""The whole volume as one slab."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a prediction holds at a time, by what they depend on.

    Attributes:
        fixed: Activations of the networks, and what restoring holds.
        per_slice: Logits, weights and input for each slice of a slab.
        column: Tokens of one window column for each slice.
        kept: Tokens of all window columns and flips for each slice.
    """

    fixed: int
    per_slice: int
    column: int
    kept: int

    def of(self, schedule: Schedule, layout: Layout) -> int:
        """Bytes in all."""
        groups = schedule.groups(layout.starts[0])
        slices = max(group[-1] - group[0] for group in groups) + layout.window[0]
        shared = max((a[-1] + layout.window[0] - b[0] for a, b in itertools.pairwise(groups)), default=0)
        kept = self.kept * shared if schedule.keep_tokens else 0
        return self.fixed + (self.per_slice + self.column) * slices + kept


def choose_schedule(
    models: Sequence[nn.Module],
    plan: Plan,
    layout: Layout,
    flips: Flips,
    stored_plane: int,
    max_bytes: int | None,
    plans: int = 1,
) -> Schedule:
    """The thinnest slab that keeps its tokens; where they do not fit, the thinnest that encodes few slices again.

    Args:
        models: Networks of one plan.
        plan: Their plan.
        layout: The volume's windows.
        flips: Mirrored copies.
        stored_plane: Stored voxels that a working slice is made of, all channels.
        max_bytes: What may be held; ``None`` is 4 GB, or as little as possible where that does not suffice.
        plans: Plans of an ensemble that run side by side; each gets an equal part.

    Raises:
        ConfigError: A bound is given and not even the thinnest slab fits.
    """
    batch = 1 if next(models[0].parameters(), torch.empty(0)).device.type == "cpu" else 4
    schedules = [
        *(Schedule(windows=size, chunk=chunk, batch=size) for size, chunk in ((batch, 16), (1, 16), (1, 4))),
        *(Schedule(windows=n, keep_tokens=False, chunk=4) for n in range(2, len(layout.starts[0]) + 1)),
    ]
    needs = {
        schedule: plans * footprint(models, plan, layout, flips, stored_plane, schedule).of(schedule, layout)
        for schedule in schedules
        if schedule.encodings(layout) <= MOST_ENCODINGS
    }
    for schedule, needed in needs.items():
        if needed <= (DEFAULT_BYTES if max_bytes is None else max_bytes):
            return schedule
    thriftiest = min(needs, key=needs.__getitem__)
    if max_bytes is None:
        logger.info("prediction needs about %.1f GB beside the model and the scan", needs[thriftiest] / 1e9)
        return thriftiest
    raise ConfigError(
        "the scan cannot be predicted within so little memory",
        found=f"a limit of {max_bytes / 1e9:.3g} GB",
        expected=f"at least {needs[thriftiest] / 1e9:.3g} GB beside the model, the scan and its mask",
        hint="raise --max-memory, or predict without --tta",
    )


def footprint(
    models: Sequence[nn.Module], plan: Plan, layout: Layout, flips: Flips, stored_plane: int, schedule: Schedule
) -> Footprint:
    """What a prediction holds, estimated: tensors are counted, temporary ones of the layers by rules of thumb."""
    plane = layout.padded[1] * layout.padded[2]
    logits = len(models) * plan.num_classes
    tokens, pixels = _token_floats(models, plan)
    columns = len(layout.starts[1]) * len(layout.starts[2])
    window = layout.window[0] * layout.window[1] * layout.window[2]
    decoding = max((_floats_per_voxel(model, plan.num_classes) for model in models), default=0) * window
    encoding = schedule.chunk * (pixels + 8 * tokens)  # queries, keys, values and the hidden layer of one block
    image = 3 * plan.num_channels * plane + 2 * stored_plane  # held, joined, and being prepared
    return Footprint(
        fixed=FLOAT * (decoding * schedule.batch + encoding + 3 * logits * max(plane, stored_plane)),
        per_slice=FLOAT * ((logits + 1) * plane + image),
        column=FLOAT * 2 * tokens,  # the pieces and what they are joined to
        kept=FLOAT * tokens * columns * len(flips.plane),
    )


def _token_floats(models: Sequence[nn.Module], plan: Plan) -> tuple[int, int]:
    """Floats of the taps of one slice of a window, over all encoders, and of the largest encoder's input image."""
    tokens = pixels = 0
    positions = (plan.patch_size[1] // plan.token_stride) * (plan.patch_size[2] // plan.token_stride)
    for group in groups_by_encoder(models):
        encoder = getattr(models[group[0]], "encoder", None)
        if encoder is not None:
            tokens += positions * sum(cast(Any, encoder).spec.channels)
            pixels = max(pixels, positions * 14 * 14 * 2 * plan.num_channels)
    return tokens, pixels


def _floats_per_voxel(model: nn.Module, classes: int) -> int:
    """Floats that decoding holds for each voxel of a window."""
    features = int(getattr(getattr(model, "decoder", None), "features", 32))
    return 8 * features + 2 * classes
