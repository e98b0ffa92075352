"""Sliding-window inference that encodes every slice once and streams along depth.

A slice's tokens depend on its in-plane window alone (its neighbours enter as channels, gathered on the whole volume),
so one pass over the slices of a window column serves every overlapping depth window and every flip along depth. Windows
have a finite depth, so the volume passes through a slab: what lies before the first window of the next slab is finished
and handed on, and nothing of the size of the volume is ever held.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from volseg.inference.sliding.blend import RollingBlend
from volseg.inference.sliding.columns import Columns, Flips
from volseg.inference.sliding.memory import WHOLE, Schedule
from volseg.inference.sliding.slabs import ArraySlabs, PaddedSlabs, Slabs
from volseg.inference.sliding.token_store import TokenStore
from volseg.inference.sliding.windows import Layout, Size
from volseg.planning.plan import Plan


@dataclass
class Counts:
    """What a prediction took.

    Attributes:
        slices: Slices of the padded volume, counted once for every encoder, window column and in-plane flip.
        encoded: How many of these were encoded, repetitions included.
        windows: Windows of the volume.
        skipped: Windows that were left out as air.
        slab_slices: Most slices that were held at a time.
    """

    slices: int = 0
    encoded: int = 0
    windows: int = 0
    skipped: int = 0
    slab_slices: int = 0

    def summary(self) -> dict[str, float]:
        """As plain numbers; ``encodings_per_slice`` is 1 where every slice is encoded once."""
        return {
            "encodings_per_slice": round(self.encoded / max(1, self.slices), 4),
            "slab_slices": self.slab_slices,
            "windows": self.windows,
            "windows_skipped": self.skipped,
        }


def predict_logits(
    model: nn.Module,
    image: NDArray[np.float32],
    plan: Plan,
    *,
    overlap: float = 0.5,
    tta_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    schedule: Schedule = WHOLE,
) -> Tensor:
    """Logits of a prepared volume: windows blended with Gaussian weights in float32.

    Equal to pushing every window through the whole network (MONAI's ``SlidingWindowInferer``), only faster where the
    model offers ``encode`` and ``decode``; other models are called as they are.

    Args:
        model: Network in eval mode, on ``device``; see :mod:`volseg.models.segmenter` for the contract.
        image: (C, D, H, W) on the plan's grid, normalised.
        plan: Gives the window size.
        overlap: Fraction of a window that the next one covers again.
        tta_axes: Spatial axes (0, 1, 2 = D, H, W); logits are averaged over all combinations of flips along them.
        device: Where the network runs; blending stays on the CPU.
        autocast: Reduced precision of the network, ``None`` for float32.
        schedule: How much is done at a time.

    Returns:
        (K, D, H, W) float32 on the CPU.
    """
    logits = torch.empty((plan.num_classes, *image.shape[1:]))
    stream = stream_logits(
        [model],
        ArraySlabs(image),
        plan,
        overlap=overlap,
        tta_axes=tta_axes,
        device=device,
        autocast=autocast,
        schedule=schedule,
    )
    for first, (slab,) in stream:
        logits[:, first : first + slab.shape[1]] = slab
    return logits


@torch.inference_mode()
def stream_logits(
    models: Sequence[nn.Module],
    image: Slabs,
    plan: Plan,
    *,
    overlap: float = 0.5,
    tta_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    schedule: Schedule = WHOLE,
    counts: Counts | None = None,
) -> Iterator[tuple[int, list[Tensor]]]:
    """Blended logits of one or several networks, some finished slices at a time.

    Args:
        models: Networks of one plan with the same halo; those that share one encoder object share its tokens.
        image: The prepared volume.
        plan: Gives the window size.
        overlap: Fraction of a window that the next one covers again.
        tta_axes: Spatial axes of the flips, as in :func:`predict_logits`.
        device: Where the networks run.
        autocast: Reduced precision of the networks.
        schedule: How much is done at a time.
        counts: What was done is added here.

    Yields:
        The number of a slice, and (K, n, H, W) float32 of each model for it and the next n - 1 slices: views that hold
        until the next step. Together they cover all slices, in order.
    """
    layout, flips = Layout.of(image.shape, plan.patch_size, overlap), Flips.along(tta_axes)
    counts = Counts() if counts is None else counts
    store = TokenStore(schedule.keep_tokens, schedule.chunk)
    columns = Columns(models, layout.window[0], flips, store, schedule.batch)
    source = PaddedSlabs(image, layout, columns.halo)
    groups = schedule.groups(layout.starts[0])
    slices = max(group[-1] - group[0] for group in groups) + layout.window[0]
    blend = RollingBlend(len(models), plan.num_classes, layout, slices)
    for group, following in itertools.zip_longest(groups, groups[1:]):
        stack = source.slab(group[0], group[-1] + layout.window[0])
        for place in itertools.product(*layout.starts[1:]):
            starts = [d for d in group if not _is_air(image, layout, columns.halo, (d, *place))]
            counts.windows, counts.skipped = counts.windows + len(group), counts.skipped + len(group) - len(starts)
            if not starts:
                continue
            window = _cut(stack, layout, columns.halo, starts, group[0], place).to(device)
            with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
                for start, logits in columns.logits(window, starts, place, following[0] if following else None):
                    blend.add((start, *place), logits, copies=len(flips.depth))
        end = following[0] if following else layout.padded[0]
        yield blend.finished(end)
        blend.drop(end)
    counts.slices += (
        layout.padded[0] * len(layout.starts[1]) * len(layout.starts[2]) * len(flips.plane) * columns.encoders
    )
    counts.encoded += store.encoded
    counts.slab_slices = max(counts.slab_slices, slices)


def _cut(stack: Tensor, layout: Layout, halo: int, starts: Sequence[int], first: int, place: Sequence[int]) -> Tensor:
    """(1, C, D + 2 * halo, h, w): the slices of some windows of a column, from a slab that begins at ``first``."""
    low, high = starts[0] - first, starts[-1] - first + layout.window[0] + 2 * halo
    rows, columns = (slice(a, a + n) for a, n in zip(place, layout.window[1:], strict=True))
    return stack[None, :, low:high, rows, columns]


def _is_air(image: Slabs, layout: Layout, halo: int, start: Size) -> bool:
    """Whether all that a window's network sees is air; padding is not."""
    depth, height, width = layout.window
    low = [max(0, start[0] - halo), *start[1:]]
    high = [min(layout.padded[0], start[0] + depth + halo), start[1] + height, start[2] + width]
    if layout.padded != layout.size:
        return False
    return image.is_air(cast(Size, tuple(low)), cast(Size, tuple(high)))
