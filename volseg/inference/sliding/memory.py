"""Memory estimate of a prediction, and the schedule that keeps it within a limit."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from volseg.config.sizes import format_size
from volseg.device import free_memory
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
WINDOWS_OF_GPU = 8
"""Windows that keep a GPU busy when they are decoded side by side."""
FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Amount of work per step.

    Attributes:
        windows: Depth windows per slab; ``None`` puts all of them into one.
        keep_tokens: Keep the tokens that the next slab needs too; otherwise their slices are encoded again.
        chunk: Slices of each column encoded at a time.
        batch: Windows of each column decoded at a time.
        columns: Columns encoded and decoded side by side; tokens are kept for one at a time only.
    """

    windows: int | None = None
    keep_tokens: bool = True
    chunk: int = 16
    batch: int = 1
    columns: int = 1

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
class Limits:
    """Limits of a prediction's memory in bytes, beside model, scan and mask; both hold for the estimate.

    Attributes:
        host: Of the host; ``None`` is 4 GB, or as little as possible if that is not enough.
        device: Of a GPU.
        device_is_stated: Whether the user has stated the limit of the GPU; otherwise more cannot be had.
    """

    host: int | None = None
    device: int = 0
    device_is_stated: bool = True


@dataclass(frozen=True)
class Needs:
    """Estimate of a prediction's memory in bytes; all of it is on the host if the networks run there."""

    host: int
    device: int

    def within(self, limits: Needs) -> bool:
        """Return whether neither exceeds its limit."""
        return self.host <= limits.host and self.device <= limits.device


@dataclass(frozen=True)
class Footprint:
    """Parts of a prediction's memory in bytes.

    Attributes:
        activations: Activations of the networks per window decoded at a time.
        encoding: Activations of the encoders per column encoded at a time.
        restoring: Slices that are being restored.
        logits: Logits and weights per slice of a slab.
        image: Input per slice of a slab, with what its preparation needs.
        copy: Input per slice of a slab on a GPU.
        column: Tokens of one window column per slice.
        kept: Tokens of all window columns and flips per slice.
    """

    activations: int
    encoding: int
    restoring: int
    logits: int
    image: int
    copy: int
    column: int
    kept: int

    def of(self, schedule: Schedule, layout: Layout, *, on_gpu: bool) -> Needs:
        """Return the sums for a schedule."""
        groups = schedule.groups(layout.starts[0])
        slices = max(group[-1] - group[0] for group in groups) + layout.window[0]
        shared = max((a[-1] + layout.window[0] - b[0] for a, b in itertools.pairwise(groups)), default=0)
        kept = self.kept * shared if schedule.keep_tokens else 0
        of_column = self.activations * schedule.batch + self.encoding + self.column * slices
        networks = schedule.columns * of_column + self.restoring + self.logits * slices + kept
        image = self.image * slices
        return Needs(image, networks + self.copy * slices) if on_gpu else Needs(networks + image, 0)


def choose_schedule(
    models: Sequence[SegmentationNetwork],
    plan: Plan,
    layout: Layout,
    flips: Flips,
    stored_plane: int,
    limits: Limits,
    plans: int = 1,
) -> Schedule:
    """Choose the first schedule that fits, of those that :func:`_cpu_schedules` or :func:`_gpu_schedules` prefers.

    Args:
        models: Networks of one plan.
        plan: Their plan.
        layout: The volume's windows.
        flips: Mirrored copies.
        stored_plane: Stored voxels per working slice, all channels.
        limits: Limits of the estimate.
        plans: Number of plans of an ensemble that run side by side; each gets an equal share.

    Raises:
        ConfigError: A limit is given and not even the thinnest slab fits.
    """
    device = next(models[0].parameters(), torch.empty(0)).device
    on_gpu = device.type != "cpu"
    schedules = _gpu_schedules(layout) if on_gpu else _cpu_schedules(layout)
    needs: dict[Schedule, Needs] = {}
    for schedule in schedules:
        if schedule.encodings(layout) <= MOST_ENCODINGS:
            one = footprint(models, plan, layout, flips, stored_plane, schedule).of(schedule, layout, on_gpu=on_gpu)
            needs[schedule] = Needs(plans * one.host, plans * one.device)
    most = Needs(DEFAULT_BYTES if limits.host is None else limits.host, limits.device)
    for schedule, needed in needs.items():
        if needed.within(most):
            return schedule
    smallest = min(needs, key=lambda schedule: needs[schedule].device + needs[schedule].host)
    if limits.host is None and needs[smallest].device <= limits.device:
        logger.info("prediction needs about %.1f GB beside the model and the scan", needs[smallest].host / 1e9)
        return smallest
    raise _too_little(most, needs[smallest], can_raise=limits.device_is_stated)


def _too_little(limits: Needs, needed: Needs, *, can_raise: bool) -> ConfigError:
    """Return the error of a limit, that of the GPU first, within which not even the thinnest slab fits."""
    of_gpu = needed.device > limits.device
    limit, least = (limits.device, needed.device) if of_gpu else (limits.host, needed.host)
    remedy = f"raise --max{'-device' * of_gpu}-memory" if can_raise or not of_gpu else "end other programs on the GPU"
    return ConfigError(
        f"the scan cannot be predicted within so little memory{' of the GPU' if of_gpu else ''}",
        found=f"a limit of {format_size(limit)}" if can_raise or not of_gpu else f"{format_size(limit)} to be had",
        expected=f"at least {format_size(least)} beside the model, the scan and its mask",
        hint=f"{remedy}, or predict without --tta{', or with --device cpu' if of_gpu else ''}",
    )


def _cpu_schedules(layout: Layout) -> list[Schedule]:
    """Return the thinnest slabs that keep their tokens, then those that encode few slices again."""
    again = [Schedule(windows=n, keep_tokens=False, chunk=4) for n in range(2, len(layout.starts[0]) + 1)]
    return [Schedule(windows=1), Schedule(windows=1, chunk=4), *again]


def _gpu_schedules(layout: Layout) -> list[Schedule]:
    """Return slabs from thick to thin, each with as many windows side by side as keep a GPU busy, then with fewer."""
    depth, columns = len(layout.starts[0]), len(layout.starts[1]) * len(layout.starts[2])
    thicknesses = [None, *(n for n in (64, 32, 16, 8) if n < depth)]
    schedules = []
    for windows, side_by_side in itertools.product(thicknesses, (8, 4, 2, 1)):
        batch = min(max(1, WINDOWS_OF_GPU // side_by_side), depth)
        schedules.append(Schedule(windows=windows, keep_tokens=False, batch=batch, columns=min(side_by_side, columns)))
    return [*dict.fromkeys(schedules), *(Schedule(windows=n, batch=n) for n in (4, 1)), *_cpu_schedules(layout)]


def free_bytes(device: torch.device) -> int:
    """Return what a prediction may take of a GPU's memory; 0 without a GPU."""
    if device.type == "cpu":
        return 0
    free = free_memory(device)
    return DEFAULT_BYTES if free is None else free


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
    image = 3 * plan.num_channels * plane + 2 * stored_plane  # held, concatenated, and in preparation
    return Footprint(
        activations=FLOAT * max((_floats_per_voxel(model, plan.num_classes) for model in models), default=0) * window,
        encoding=FLOAT * schedule.chunk * (pixels + 8 * tokens),  # queries, keys, values, hidden layer of one block
        restoring=FLOAT * 3 * logits * max(plane, stored_plane),
        logits=FLOAT * (logits + 1) * plane,
        image=FLOAT * image,
        copy=FLOAT * plan.num_channels * plane,
        column=FLOAT * 2 * tokens,  # the pieces and their concatenation
        kept=FLOAT * tokens * columns * len(flips.plane),
    )


def _token_floats(models: Sequence[SegmentationNetwork], plan: Plan) -> tuple[int, int]:
    """Count the floats of the taps of one slice of a window, over all encoders, and of the largest slice image."""
    tokens = pixels = 0
    _, height, width = plan.patch_size
    for encoder in {id(model.encoder): model.encoder for model in models}.values():
        if encoder is not None:
            for channels, (_, stride, _) in zip(encoder.spec.channels, encoder.spec.strides, strict=True):
                tokens += (height // stride) * (width // stride) * channels
            scale = encoder.patch / encoder.token_stride
            pixels = max(pixels, int(height * width * scale**2) * 2 * plan.num_channels)  # slice and neighbours
    return tokens, pixels


def _floats_per_voxel(model: SegmentationNetwork, classes: int) -> int:
    """Estimate the floats that decoding needs per voxel of a window."""
    return 8 * model.features + 2 * classes
