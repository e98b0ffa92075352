"""Sliding-window inference that encodes every slice once.

A slice's tokens depend on its in-plane window alone (its neighbours enter as channels, gathered on the whole volume),
so one pass over the slices of a window column serves every overlapping depth window and every flip along depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from volseg.geometry.ops import pad_to_size
from volseg.inference.windows import gaussian_importance, window_starts
from volseg.planning.plan import Plan

_FIRST = 2  # the dimension of D in (B, C, D, H, W)


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    image: NDArray[np.float32],
    plan: Plan,
    *,
    overlap: float = 0.5,
    tta_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    chunk: int = 16,
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
        chunk: Slices that are encoded at a time.

    Returns:
        (K, D, H, W) float32 on the CPU.
    """
    window = plan.patch_size
    padded, before = pad_to_size(image, window)
    halo = int(getattr(model, "halo", 0))
    depth, rows, columns = (window_starts(n, w, overlap) for n, w in zip(padded.shape[1:], window, strict=True))
    volume = _with_halo(padded, halo)
    weight = gaussian_importance(window)
    blended = torch.zeros((plan.num_classes, *padded.shape[1:]))
    total = torch.zeros(padded.shape[1:])
    device = torch.device(device)
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for row, column in itertools.product(rows, columns):
            plane = (slice(row, row + window[1]), slice(column, column + window[2]))
            stack = volume[(None, slice(None), slice(None), *plane)].to(device)
            for start, logits in _column_logits(model, stack, depth, window[0], halo, tta_axes, chunk):
                place = (slice(start, start + window[0]), *plane)
                blended[(slice(None), *place)] += logits.float().cpu() * weight
                total[place] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    blended /= total
    return blended[(slice(None), *inside)]


def _with_halo(image: NDArray[np.float32], halo: int) -> Tensor:
    """(C, D, H, W) -> (C, D + 2 * halo, H, W): the end slices are repeated, as in training."""
    padding = ((0, 0), (halo, halo), (0, 0), (0, 0))
    return torch.from_numpy(np.pad(np.asarray(image, dtype=np.float32), padding, mode="edge"))


def _column_logits(
    model: nn.Module, stack: Tensor, starts: Sequence[int], depth: int, halo: int, axes: Sequence[int], chunk: int
) -> Iterator[tuple[int, Tensor]]:
    """Slide along the depth of one window column.

    Args:
        model: The network.
        stack: (1, C, D + 2 * halo, H, W), H and W of one window.
        starts: First slices of the depth windows.
        depth: Slices of a window.
        halo: Neighbouring slices on each side.
        axes: Spatial axes to mirror.
        chunk: Slices that are encoded at a time.

    Yields:
        A window's first slice and its logits (K, depth, H, W), once for each combination of flips, flipped back.
    """
    plane_flips = list(_subsets([_FIRST + axis for axis in axes if axis != 0]))
    depth_flips = (False, True) if 0 in axes else (False,)
    for plane_flip in plane_flips:
        window_logits = _window_function(model, stack.flip(plane_flip), depth, halo, chunk)
        for start, depth_flip in itertools.product(starts, depth_flips):
            logits = window_logits(start, depth_flip)  # (1, K, depth, H, W)
            yield start, logits.flip(plane_flip)[0]


def _window_function(
    model: nn.Module, stack: Tensor, depth: int, halo: int, chunk: int
) -> Callable[[int, bool], Tensor]:
    """A function of (first slice, mirrored along depth) that gives a window's logits (1, K, depth, H, W)."""
    if not hasattr(model, "encode"):

        def whole(start: int, mirrored: bool) -> Tensor:
            window = _mirror(stack[:, :, start : start + depth + 2 * halo], mirrored)
            return _mirror(cast(Tensor, model(window)), mirrored)

        return whole
    taps = _encode_slices(model, stack, halo, chunk)

    def decoded(start: int, mirrored: bool) -> Tensor:
        window = [_mirror(tap[:, :, start : start + depth], mirrored) for tap in taps]
        centre = _mirror(stack[:, :, start + halo : start + halo + depth], mirrored)
        return _mirror(cast(Tensor, cast(Any, model).decode(window, centre)), mirrored)

    return decoded


def _encode_slices(model: nn.Module, stack: Tensor, halo: int, chunk: int) -> list[Tensor]:
    """Taps (1, E, D, h, w) of all slices of (1, C, D + 2 * halo, H, W), a chunk at a time."""
    depth = stack.shape[2] - 2 * halo
    pieces = [
        cast(Any, model).encode(stack[:, :, first : min(first + chunk, depth) + 2 * halo])
        for first in range(0, depth, chunk)
    ]
    return [torch.cat(tap, dim=2) for tap in zip(*pieces, strict=True)]


def _mirror(tensor: Tensor, mirrored: bool) -> Tensor:
    """(B, C, D, H, W), reversed along depth if asked."""
    return tensor.flip(_FIRST) if mirrored else tensor


def _subsets(dims: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(dims, n) for n in range(len(dims) + 1))
