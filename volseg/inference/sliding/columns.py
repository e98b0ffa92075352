"""Prediction of window columns: encode their slices once, decode their windows, undo the flips."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.inference.sliding.token_store import DEPTH, Taps, TokenStore
from volseg.models.contracts import SegmentationNetwork

Position = tuple[int, int]
"""First row and column of the windows of a column."""
Window = tuple[int, bool]
"""First slice of a window, and whether it is mirrored along depth."""


@dataclass(frozen=True)
class Flips:
    """Mirrored copies that are averaged.

    Attributes:
        plane: Sets of dimensions of (B, C, D, H, W) to flip in plane; the first is empty.
        depth: Whether windows are mirrored along depth; mirrored windows reuse the tokens.
    """

    plane: tuple[tuple[int, ...], ...] = ((),)
    depth: tuple[bool, ...] = (False,)

    @classmethod
    def along(cls, axes: Sequence[int]) -> Flips:
        """Return all combinations of flips along some spatial axes (0, 1, 2 = D, H, W)."""
        dims = [DEPTH + axis for axis in axes if axis != 0]
        subsets = itertools.chain.from_iterable(itertools.combinations(dims, n) for n in range(len(dims) + 1))
        return cls(tuple(subsets), (False, True) if 0 in axes else (False,))

    @property
    def copies(self) -> int:
        """Return the number of mirrored copies of each window, the unchanged one included."""
        return len(self.plane) * len(self.depth)


class Columns:
    """Runs networks over window columns.

    Args:
        models: Networks with the same ``halo``; those that share one encoder object share its tokens.
        depth: Slices of a window.
        flips: Mirrored copies.
        store: Keeps tokens between slabs.
        batch: Windows of each column decoded at a time.

    Attributes:
        halo: Slices that the input has beyond the output on each side.
        encoders: Number of different encoders of the models.
    """

    def __init__(
        self, models: Sequence[SegmentationNetwork], depth: int, flips: Flips, store: TokenStore, batch: int
    ) -> None:
        self.halo = models[0].halo
        self._models, self._depth, self._flips, self._store, self._batch = models, depth, flips, store, batch
        self._groups = groups_by_encoder(models)
        self.encoders = len(self._groups)

    def logits(
        self, stack: Tensor, starts: Sequence[int], positions: Sequence[Position], keep_from: int | None
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Compute the logits of the windows of N columns, flipped back and summed over the flips along depth.

        Args:
            stack: (N, C, D + 2 * halo, h, w): the slices from the first window to the last.
            starts: First slices of the windows, ascending, the same in every column; the stack begins with the first.
            positions: First row and column of the windows of each column.
            keep_from: First slice that the next slab needs too.

        Yields:
            First slice of a window of every column, and (N, K, D, h, w) of each model, once per in-plane flip.
        """
        for flip in self._flips.plane:
            flipped = stack.flip(flip) if flip else stack
            taps = self._encode(flipped, starts[0], (tuple(positions), flip), keep_from)
            for start, logits in self._decode(flipped, taps, starts):
                yield start, [values.flip(flip) if flip else values for values in logits]

    def _encode(self, stack: Tensor, first: int, key: tuple[Hashable, ...], keep_from: int | None) -> list[Taps]:
        """Return the taps for each model; none for a model without an encoder."""
        taps: list[Taps] = [[] for _ in self._models]
        for number, group in enumerate(self._groups):
            shared = self._store.taps(self._models[group[0]], (number, *key), stack, first, keep_from)
            for index in group:
                taps[index] = shared
        return taps

    def _decode(self, stack: Tensor, taps: Sequence[Taps], starts: Sequence[int]) -> Iterator[tuple[int, list[Tensor]]]:
        """Compute the logits (N, K, D, h, w) of each model for each window, summed over the flips along depth."""
        jobs = list(itertools.product(starts, self._flips.depth))
        sums: dict[int, list[Tensor]] = {}
        for first in range(0, len(jobs), self._batch):
            batch = jobs[first : first + self._batch]
            offsets = [(start - starts[0], mirrored) for start, mirrored in batch]
            outputs = [self._run(m, stack, t, offsets) for m, t in zip(self._models, taps, strict=True)]
            for number, (start, mirrored) in enumerate(batch):
                logits = [_mirror(output[number], mirrored, DEPTH) for output in outputs]
                sums[start] = [a + b for a, b in zip(sums[start], logits, strict=True)] if start in sums else logits
                if mirrored == self._flips.depth[-1]:
                    yield start, sums.pop(start)

    def _run(self, model: SegmentationNetwork, stack: Tensor, taps: Taps, windows: Sequence[Window]) -> Tensor:
        """Compute (B, N, K, D, h, w): the logits of B windows of each of N columns."""

        def cut(tensor: Tensor, skip: int = 0) -> Tensor:
            parts = [_mirror(tensor[:, :, skip + at : skip + at + self._depth], flip, DEPTH) for at, flip in windows]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        logits = model.decode([cut(tap) for tap in taps], cut(stack, skip=self.halo))
        assert isinstance(logits, Tensor)  # a list in training mode only
        return logits.view(len(windows), len(stack), *logits.shape[1:])


def groups_by_encoder(models: Sequence[SegmentationNetwork]) -> list[list[int]]:
    """Return the indices of the models that share one encoder object; models without an encoder are in no group."""
    groups: dict[int, list[int]] = {}
    for index, model in enumerate(models):
        if model.encoder is not None:
            groups.setdefault(id(model.encoder), []).append(index)
    return list(groups.values())


def _mirror(tensor: Tensor, mirrored: bool, dim: int) -> Tensor:
    return tensor.flip(dim) if mirrored else tensor
