"""The networks at work on one window column: encode its slices once, decode its windows, undo the flips."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from volseg.inference.sliding.token_store import DEPTH, Taps, TokenStore

Window = tuple[int, bool]
"""First slice of a window, and whether it is mirrored along depth."""


@dataclass(frozen=True)
class Flips:
    """Mirrored copies that are averaged.

    Attributes:
        plane: Sets of dimensions of (B, C, D, H, W) to flip in plane; the first is empty.
        depth: Whether windows are mirrored along depth; mirrored ones reuse the tokens.
    """

    plane: tuple[tuple[int, ...], ...] = ((),)
    depth: tuple[bool, ...] = (False,)

    @classmethod
    def along(cls, axes: Sequence[int]) -> Flips:
        """All combinations of flips along some spatial axes (0, 1, 2 = D, H, W)."""
        dims = [DEPTH + axis for axis in axes if axis != 0]
        subsets = itertools.chain.from_iterable(itertools.combinations(dims, n) for n in range(len(dims) + 1))
        return cls(tuple(subsets), (False, True) if 0 in axes else (False,))

    @property
    def copies(self) -> int:
        """Mirrored copies of each window, the unchanged one included."""
        return len(self.plane) * len(self.depth)


class Columns:
    """Runs networks over window columns.

    Args:
        models: Networks with the same ``halo``; those that share one encoder object share its tokens.
        depth: Slices of a window.
        flips: Mirrored copies.
        store: Keeps tokens between slabs.
        batch: Windows that are decoded at a time.

    Attributes:
        halo: Slices that the input carries beyond the output on each side.
        encoders: Different slice encoders among the models.
    """

    def __init__(self, models: Sequence[nn.Module], depth: int, flips: Flips, store: TokenStore, batch: int) -> None:
        self.halo = int(cast(int, getattr(models[0], "halo", 0)))
        self._models, self._depth, self._flips, self._store, self._batch = models, depth, flips, store, batch
        self._groups = groups_by_encoder(models)
        self.encoders = sum(getattr(models[group[0]], "encoder", None) is not None for group in self._groups)

    def logits(
        self, stack: Tensor, starts: Sequence[int], place: tuple[int, int], keep_from: int | None
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Logits of a column's windows, flipped back and summed over the flips along depth.

        Args:
            stack: (1, C, D + 2 * halo, h, w): the slices from the first window to the last.
            starts: First slices of the windows, ascending; the stack begins with the first.
            place: Row and column of the windows.
            keep_from: First slice that the next slab needs too.

        Yields:
            A window's first slice and (K, D, h, w) of each model, once for every flip in plane.
        """
        for flip in self._flips.plane:
            flipped = stack.flip(flip) if flip else stack
            taps = self._encode(flipped, starts[0], (*place, flip), keep_from)
            for start, logits in self._decode(flipped, taps, starts):
                yield start, [values.flip([dim - 1 for dim in flip]) if flip else values for values in logits]

    def _encode(self, stack: Tensor, first: int, key: tuple[Any, ...], keep_from: int | None) -> list[Taps | None]:
        """Taps for each model; ``None`` for one that does not tell its encoder apart."""
        taps: list[Taps | None] = [None] * len(self._models)
        for number, group in enumerate(self._groups):
            model = self._models[group[0]]
            if hasattr(model, "encode"):
                shared = self._store.taps(model, (number, *key), stack, first, keep_from)
                for index in group:
                    taps[index] = shared
        return taps

    def _decode(
        self, stack: Tensor, taps: Sequence[Taps | None], starts: Sequence[int]
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Logits (K, D, h, w) of each model for each window, summed over the flips along depth."""
        jobs = list(itertools.product(starts, self._flips.depth))
        sums: dict[int, list[Tensor]] = {}
        for first in range(0, len(jobs), self._batch):
            batch = jobs[first : first + self._batch]
            offsets = [(start - starts[0], mirrored) for start, mirrored in batch]
            outputs = [self._run(m, stack, t, offsets) for m, t in zip(self._models, taps, strict=True)]
            for number, (start, mirrored) in enumerate(batch):
                logits = [_mirror(output[number], mirrored, DEPTH - 1) for output in outputs]
                sums[start] = [a + b for a, b in zip(sums[start], logits, strict=True)] if start in sums else logits
                if mirrored == self._flips.depth[-1]:
                    yield start, sums.pop(start)

    def _run(self, model: nn.Module, stack: Tensor, taps: Taps | None, windows: Sequence[Window]) -> Tensor:
        """(B, K, D, h, w): the logits of some windows of a stack."""

        def cut(tensor: Tensor, skip: int = 0, extra: int = 0) -> Tensor:
            length = self._depth + extra
            parts = [_mirror(tensor[:, :, skip + at : skip + at + length], flip, DEPTH) for at, flip in windows]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        if taps is None:
            return cast(Tensor, model(cut(stack, extra=2 * self.halo)))
        return cast(Tensor, cast(Any, model).decode([cut(tap) for tap in taps], cut(stack, skip=self.halo)))


def groups_by_encoder(models: Sequence[nn.Module]) -> list[list[int]]:
    """Indices of the models that share one encoder object, so that its tokens serve them all."""
    groups: dict[int, list[int]] = {}
    for index, model in enumerate(models):
        encoder = getattr(model, "encoder", None)
        groups.setdefault(id(model if encoder is None else encoder), []).append(index)
    return list(groups.values())


def _mirror(tensor: Tensor, mirrored: bool, dim: int) -> Tensor:
    return tensor.flip(dim) if mirrored else tensor
