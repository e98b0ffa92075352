"""Tokens of one window column: every slice is encoded once, and those that the next slab needs are kept."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

DEPTH = 2  # the dimension of D in (B, C, D, H, W)
Taps = list[Tensor]


class TokenStore:
    """Taps of the slices that are in use, by window column and flip.

    Args:
        keep: Keep the tokens that the next slab needs too; otherwise their slices are encoded again.
        chunk: Slices that are encoded at a time.

    Attributes:
        encoded: Slices encoded so far, each counted once for every window column and flip.
    """

    def __init__(self, keep: bool, chunk: int) -> None:
        self.encoded = 0
        self._keep = keep
        self._chunk = chunk
        self._held: dict[Any, tuple[int, Taps]] = {}

    def taps(self, model: nn.Module, key: Any, stack: Tensor, start: int, keep_from: int | None) -> Taps:
        """Taps (1, E, D, h, w) of a stack of slices.

        Args:
            model: Has ``encode`` and ``halo``.
            key: Names the encoder, the window column and the flip.
            stack: (1, C, D + 2 * halo, H, W).
            start: Number of its first slice, halo not counted.
            keep_from: First slice that the next slab needs; ``None`` if there is none.
        """
        halo = cast(int, model.halo)
        depth = stack.shape[DEPTH] - 2 * halo
        pieces, done = [], 0
        if key in self._held:
            first, held = self._held.pop(key)
            known = first + held[0].shape[DEPTH] - start
            if first <= start and known > 0:
                done = min(known, depth)
                pieces = [[tap[:, :, start - first : start - first + done] for tap in held]]
        for at in range(done, depth, self._chunk):
            pieces.append(cast(Any, model).encode(stack[:, :, at : min(at + self._chunk, depth) + 2 * halo]))
        self.encoded += depth - done
        taps = [torch.cat(tap, dim=DEPTH) if len(tap) > 1 else tap[0] for tap in zip(*pieces, strict=True)]
        if taps and self._keep and keep_from is not None and keep_from < start + depth:
            at = max(keep_from, start)
            self._held[key] = at, [tap[:, :, at - start :].clone() for tap in taps]
        return taps
