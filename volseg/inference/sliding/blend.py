"""Rolling slab of blended logits: windows are added at its end, finished slices are removed from its front."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from volseg.inference.sliding.windows import Layout, gaussian_importance

SKIPPED_LOGITS = (10.0, -10.0)
"""Logits of background and of every other class or region where all windows were skipped."""


class RollingBlend:
    """Weighted mean of the logits of overlapping windows, for the slices that are not finished yet.

    Args:
        models: Number of networks, which all predict the same windows.
        classes: Number of classes K.
        layout: The padded volume and its windows.
        slices: Largest number of slices held at a time.
        device: Where they are held and blended: that of the networks, so that no window is copied.
        regions: Whether the classes are regions, without a background among them.
    """

    def __init__(
        self, models: int, classes: int, layout: Layout, slices: int, device: torch.device, *, regions: bool = False
    ) -> None:
        self._regions = regions
        self._layout = layout
        self._first = 0  # first held slice of the padded volume
        self._weight = gaussian_importance(layout.window).to(device)
        shape = (slices, *layout.padded[1:])
        self._sums = [torch.zeros((classes, *shape), device=device) for _ in range(models)]
        self._total = torch.zeros(shape, device=device)

    def add(self, start: Sequence[int], logits: Sequence[Tensor], copies: int = 1) -> None:
        """Add a window.

        Args:
            start: Its first voxel (d, h, w) in the padded volume.
            logits: (K, D, H, W) of each model, summed over mirrored copies that were flipped back.
            copies: Number of copies in the sum.
        """
        box = tuple(
            slice(a, a + n) for a, n in zip((start[0] - self._first, *start[1:]), self._weight.shape, strict=True)
        )
        for sums, values in zip(self._sums, logits, strict=True):
            sums[(slice(None), *box)].addcmul_(values.float(), self._weight)
        self._total[box].add_(self._weight, alpha=copies)

    def finished(self, stop: int) -> tuple[int, list[Tensor]]:
        """Return the slices before ``stop``, without the padding.

        Returns:
            The number of the first slice in the volume, and blended logits (K, n, H, W) of each model; valid until
            `drop` is called.
        """
        total = self._total[: stop - self._first]
        skipped = total == 0
        any_skipped = bool(skipped.any())
        if any_skipped:
            total.masked_fill_(skipped, 1)
        slabs = [sums[:, : stop - self._first] for sums in self._sums]
        for slab in slabs:
            slab /= total
            if any_skipped:
                slab.masked_fill_(skipped, SKIPPED_LOGITS[1])
                if not self._regions:
                    slab[0].masked_fill_(skipped, SKIPPED_LOGITS[0])
        before, size = self._layout.before, self._layout.size
        low, high = max(self._first, before[0]), min(stop, before[0] + size[0])
        rows, columns = (slice(b, b + n) for b, n in zip(before[1:], size[1:], strict=True))
        return low - before[0], [slab[:, low - self._first : high - self._first, rows, columns] for slab in slabs]

    def drop(self, stop: int) -> None:
        """Remove the slices before ``stop``; the others move to the front."""
        count = stop - self._first
        for slab in (self._total, *(classes for sums in self._sums for classes in sums)):  # (slices, H, W) each
            kept = slab[count:].clone()
            slab[: len(kept)] = kept
            slab[len(kept) :] = 0
        self._first = stop
