"""Sliding-window inference that encodes every slice once and streams along depth.

A slice's tokens depend only on its in-plane window (its neighbours enter as channels, gathered on the whole volume), so
one pass over the slices of a window column serves all overlapping depth windows and flips along depth. Windows have a
finite depth, so the volume is processed in slabs: slices before the first window of the next slab are finished and
returned, and no array of the size of the volume is held.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volseg.device import full_float32
from volseg.errors import DataError
from volseg.inference.sliding.blend import RollingBlend
from volseg.inference.sliding.columns import Columns, Flips, Position
from volseg.inference.sliding.memory import WHOLE, Schedule
from volseg.inference.sliding.slabs import ArraySlabs, PaddedSlabs, Slabs
from volseg.inference.sliding.token_store import TokenStore
from volseg.inference.sliding.windows import Layout, Size
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan


@dataclass
class Counts:
    """Amount of work of a prediction.

    Attributes:
        slices: Slices of the padded volume, counted once per encoder, window column and in-plane flip; 0 without an
            encoder.
        encoded: Number of these that were encoded, repetitions included.
        windows: Windows of the volume.
        skipped: Windows skipped as air.
        slab_slices: Largest number of slices held at a time.
    """

    slices: int = 0
    encoded: int = 0
    windows: int = 0
    skipped: int = 0
    slab_slices: int = 0

    def summary(self) -> dict[str, float]:
        """Return plain numbers; ``encodings_per_slice``, 1 if each is encoded once, is absent without an encoder."""
        encodings = {"encodings_per_slice": round(self.encoded / self.slices, 4)} if self.slices else {}
        return {
            **encodings,
            "slab_slices": self.slab_slices,
            "windows": self.windows,
            "windows_skipped": self.skipped,
        }


def predict_logits(
    model: SegmentationNetwork,
    image: NDArray[np.float32],
    plan: Plan,
    *,
    tta_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    schedule: Schedule = WHOLE,
) -> Tensor:
    """Predict the logits of a prepared volume: windows blended with Gaussian weights in float32.

    The result equals that of running the whole network on every window (MONAI's ``SlidingWindowInferer``).

    Args:
        model: Network in eval mode, on ``device``.
        image: (C, D, H, W) on the plan's grid, normalised.
        plan: The plan, whose patch size is the window.
        tta_axes: Spatial axes (0, 1, 2 = D, H, W); logits are averaged over all combinations of flips along them.
        device: Where the network runs and the windows are blended.
        autocast: Reduced precision of the network, ``None`` for float32.
        schedule: Amount of work per step.

    Returns:
        (K, D, H, W) float32 on the CPU.
    """
    logits = torch.empty((plan.num_classes, *image.shape[1:]))  # on the CPU
    stream = stream_logits(
        [model],
        ArraySlabs(image),
        plan,
        tta_axes=tta_axes,
        device=device,
        autocast=autocast,
        schedule=schedule,
    )
    with full_float32():
        for first, (slab,) in stream:
            logits[:, first : first + slab.shape[1]] = slab
    return logits


@torch.inference_mode()
def stream_logits(
    models: Sequence[SegmentationNetwork],
    image: Slabs,
    plan: Plan,
    *,
    tta_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    schedule: Schedule = WHOLE,
    counts: Counts | None = None,
) -> Iterator[tuple[int, list[Tensor]]]:
    """Predict the blended logits of one or several networks, some finished slices at a time.

    Args:
        models: Networks of one plan with the same halo; those that share one encoder object share its tokens.
        image: The prepared volume.
        plan: The plan, whose patch size is the window.
        tta_axes: Spatial axes of the flips, as in `predict_logits`.
        device: Where the networks run, and all else from the cutting of windows to the finished slices.
        autocast: Reduced precision of the networks.
        schedule: Amount of work per step.
        counts: The amount of work is added here.

    Raises:
        DataError: A logit is not finite.

    Yields:
        The number of a slice, and (K, n, H, W) float32 of each model for it and the next n - 1 slices: views that are
        valid until the next step. Together they cover all slices, in order.
    """
    device = torch.device(device)
    layout, flips = Layout.of(image.shape, plan.patch_size), Flips.along(tta_axes)
    counts = Counts() if counts is None else counts
    store = TokenStore(schedule.keep_tokens, schedule.chunk)
    columns = Columns(models, layout.window[0], flips, store, schedule.batch)
    source = PaddedSlabs(image, layout, columns.halo)
    groups = schedule.groups(layout.starts[0])
    slices = max(group[-1] - group[0] for group in groups) + layout.window[0]
    regions = plan.regions is not None
    blend = RollingBlend(len(models), plan.num_classes, layout, slices, device, regions=regions)
    for group, following in itertools.zip_longest(groups, groups[1:]):
        stack = _to_device(source.slab(group[0], group[-1] + layout.window[0]), device)
        keep_from = following[0] if following else None
        for positions, starts in _side_by_side(image, layout, columns.halo, group, schedule.columns, counts):
            cut = [_cut(stack, layout, columns.halo, starts, group[0], position) for position in positions]
            windows = torch.cat(cut) if len(cut) > 1 else cut[0]
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                for start, logits in columns.logits(windows, starts, positions, keep_from):
                    for number, position in enumerate(positions):
                        blend.add((start, *position), [one[number] for one in logits], copies=len(flips.depth))
        end = following[0] if following else layout.padded[0]
        first, logits_of_models = blend.finished(end)
        _check_finite(logits_of_models, first)
        yield first, logits_of_models
        blend.drop(end)
    counts.slices += (
        layout.padded[0] * len(layout.starts[1]) * len(layout.starts[2]) * len(flips.plane) * columns.encoders
    )
    counts.encoded += store.encoded
    counts.slab_slices = max(counts.slab_slices, slices)


def _check_finite(slabs: Sequence[Tensor], first: int) -> None:
    """Check the logits (K, n, H, W) of each model from slice ``first`` on: an argmax of NaN would be background.

    A sum costs little and is finite only if every value is, so values are looked at one by one only if it is not.
    """
    for slab in slabs:
        if not slab.sum().isfinite() and not slab.isfinite().all():
            raise DataError(
                "the network returns logits that are not finite",
                found=f"NaN or infinity in slices {first} to {first + slab.shape[1] - 1} of the working grid",
                hint="check the values of the scan and the weights of the model",
            )


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values from the CPU; to a GPU through pinned memory, without waiting for it."""
    if device.type != "cuda":
        return values.to(device)
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def _side_by_side(
    image: Slabs, layout: Layout, halo: int, group: Sequence[int], most: int, counts: Counts
) -> Iterator[tuple[list[Position], list[int]]]:
    """Yield up to ``most`` neighbouring columns at a time, and the first slices of their windows that are not air."""
    positions: list[Position] = []
    starts: list[int] = []
    for position in itertools.product(*layout.starts[1:]):
        own = [d for d in group if not _is_air(image, layout, halo, (d, *position))]
        counts.windows, counts.skipped = counts.windows + len(group), counts.skipped + len(group) - len(own)
        if positions and (own != starts or len(positions) == most):
            yield positions, starts
            positions = []
        if own:
            positions, starts = [*positions, (position[0], position[1])], own
    if positions:
        yield positions, starts


def _cut(
    stack: Tensor, layout: Layout, halo: int, starts: Sequence[int], first: int, position: Sequence[int]
) -> Tensor:
    """Cut (1, C, D + 2 * halo, h, w), the slices of some windows of a column, from a slab that begins at ``first``."""
    low, high = starts[0] - first, starts[-1] - first + layout.window[0] + 2 * halo
    rows, columns = (slice(a, a + n) for a, n in zip(position, layout.window[1:], strict=True))
    return stack[None, :, low:high, rows, columns]


def _is_air(image: Slabs, layout: Layout, halo: int, start: Size) -> bool:
    """Return whether the whole input of a window is air; in a padded volume no window is."""
    if layout.padded != layout.size:
        return False
    (first, row, column), (depth, height, width) = start, layout.window
    low, high = max(0, first - halo), min(layout.padded[0], first + depth + halo)
    return image.is_air((low, row, column), (high, row + height, column + width))
