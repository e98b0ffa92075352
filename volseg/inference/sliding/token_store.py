"""Tokens of window columns: each slice is encoded once, and the tokens that the next slab needs are kept."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from volseg.models.contracts import SegmentationNetwork

DEPTH = 2  # the dimension of D in (B, C, D, H, W)
Taps = list[Tensor]


class TokenStore:
    """Taps of the slices in use, by window column and flip.

    Args:
        keep: Keep the tokens that the next slab needs too; otherwise their slices are encoded again.
        chunk: Slices encoded at a time.

    Attributes:
        encoded: Slices encoded so far, each counted once per encoder, window column and flip.
    """

    def __init__(self, keep: bool, chunk: int) -> None:
        self.encoded = 0
        self._keep = keep
        self._chunk = chunk
        self._kept: dict[Hashable, tuple[int, Taps]] = {}  # number of the first slice, and taps

    def taps(self, model: SegmentationNetwork, key: Hashable, stack: Tensor, start: int, keep_from: int | None) -> Taps:
        """Return the taps (N, E, D, h, w) of the slices of some window columns.

        Args:
            model: A network with an encoder.
            key: Identifies the encoder, the window columns and the flip.
            stack: (N, C, D + 2 * halo, H, W).
            start: Number of its first slice, without the halo.
            keep_from: First slice that the next slab needs; ``None`` if it needs none.
        """
        depth = stack.shape[DEPTH] - 2 * model.halo
        pieces, done = [], 0
        if key in self._kept:
            first, kept = self._kept.pop(key)
            available = first + kept[0].shape[DEPTH] - start
            if first <= start and available > 0:
                done = min(available, depth)
                pieces = [[tap[:, :, start - first : start - first + done] for tap in kept]]
        for at in range(done, depth, self._chunk):
            pieces.append(model.encode(stack[:, :, at : min(at + self._chunk, depth) + 2 * model.halo]))
        self.encoded += len(stack) * (depth - done)
        taps = [torch.cat(tap, dim=DEPTH) if len(tap) > 1 else tap[0] for tap in zip(*pieces, strict=True)]
        if self._keep and keep_from is not None and keep_from < start + depth:
            at = max(keep_from, start)
            self._kept[key] = at, [tap[:, :, at - start :].clone() for tap in taps]
        return taps
