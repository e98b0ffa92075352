"""MONAI's sliding window on a volseg network, with the same logits: the peer of the prediction benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prediction.networks import Size
from volseg.models.contracts import SegmentationNetwork

OVERLAP = 0.5


def with_neighbours(image: NDArray[np.float32] | Tensor, halo: int) -> Tensor:
    """Return ``(C, D, H, W)`` as ``(1, (2 halo + 1) * C, D, H, W)`` on its device: neighbouring slices as channels.

    MONAI cuts windows without neighbouring slices; as channels, every window has them. The end slices are repeated.
    """
    volume = torch.as_tensor(image)[None]
    if not halo:
        return volume
    padded, depth = F.pad(volume, (0, 0, 0, 0, halo, halo), mode="replicate"), volume.shape[2]
    return torch.cat([padded[:, :, shift : shift + depth] for shift in range(2 * halo + 1)], dim=1)


def whole_network(model: SegmentationNetwork, axes: Sequence[int] = ()) -> Callable[[Tensor], Tensor]:
    """Return the network for MONAI's inferer: windows with neighbours as channels, averaged over all flips of axes."""
    halo = model.halo
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations([axis + 2 for axis in axes], n)]

    def predict(windows: Tensor) -> Tensor:
        shifts = windows.chunk(2 * halo + 1, dim=1)  # each (B, C, D, H, W)
        before = [shift[:, :, :1] for shift in shifts[:halo]]
        after = [shift[:, :, -1:] for shift in shifts[halo + 1 :]]
        x = torch.cat([*before, shifts[halo], *after], dim=2)  # (B, C, D + 2 halo, H, W)
        total = model(x.flip(flips[0])).flip(flips[0])
        for flip in flips[1:]:
            total += model(x.flip(flip)).flip(flip)
        return total / len(flips)

    return predict


@torch.inference_mode()
def monai_logits(
    model: SegmentationNetwork, stacked: Tensor, window: Size, batch: int, axes: Sequence[int] = ()
) -> Tensor:
    """Return the logits ``(K, D, H, W)`` of ``SlidingWindowInferer``: every window through the whole network.

    Args:
        model: Network.
        stacked: Result of `with_neighbours`.
        window: Voxels of a window.
        batch: ``sw_batch_size``.
        axes: Mirror axes.
    """
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(window, sw_batch_size=batch, overlap=OVERLAP, mode="gaussian")
    return inferer(stacked, whole_network(model, axes))[0]
