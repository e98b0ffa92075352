"""Encodings and decodings of a prediction: counted while it runs, predicted by counting windows, and their cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prediction.networks import Size, smooth_volume
from shared.measure import timed
from volseg.inference.sliding.windows import window_starts
from volseg.models.segmenter import Segmenter
from volseg.planning.plan import Plan


class WorkCount:
    """Counts slices encoded and windows decoded inside a ``with`` block, in units of the plan's windows."""

    def __init__(self, model: Segmenter, window: Size) -> None:
        self.slices = 0.0
        self.windows = 0.0
        self._model, self._window = model, window
        self._handles: list[Any] = []

    def __enter__(self) -> WorkCount:
        if self._model.encoder is not None:
            self._handles.append(self._model.encoder.register_forward_hook(self._encoded))
        self._handles.append(self._model.decoder.register_forward_hook(self._decoded))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _encoded(self, module: nn.Module, inputs: tuple[Tensor], taps: list[Tensor]) -> None:
        """Add the slices of the output ``(B, E, D, h, w)``, as shares of a window's plane."""
        plane = inputs[0].shape[-2] * inputs[0].shape[-1]
        self.slices += len(taps[0]) * taps[0].shape[2] * plane / (self._window[1] * self._window[2])

    def _decoded(self, module: nn.Module, inputs: tuple[Tensor, Any], logits: Any) -> None:
        image = inputs[0]  # (B, C, D, H, W)
        self.windows += len(image) * image[0, 0].numel() / float(np.prod(self._window))


@dataclass(frozen=True)
class PartCosts:
    """Seconds to encode one slice of a window and to decode one window."""

    encode_slice_s: float
    decode_window_s: float

    @classmethod
    @torch.inference_mode()
    def measure(cls, model: Any, plan: Plan, batch: int) -> PartCosts:
        """Time a batch of windows: medians of three calls, after one to warm up."""
        depth = plan.patch_size[0]
        x = torch.from_numpy(smooth_volume((depth + 2 * model.halo, *plan.patch_size[1:])))[None]
        x = x.repeat(batch, plan.num_channels, 1, 1, 1)
        centre = x[:, :, model.halo : model.halo + depth]
        taps = model.encode(x)
        model.decode(taps, centre)
        encode_s, _ = timed(lambda: model.encode(x), repeats=3)
        decode_s, _ = timed(lambda: model.decode(taps, centre), repeats=3)
        return cls(encode_s / depth / batch, decode_s / batch)

    def seconds(self, slices: float, windows: float) -> float:
        """Return the seconds of encoding slices and decoding windows."""
        return slices * self.encode_slice_s + windows * self.decode_window_s


def expected_work(shape: Size, window: Size, axes: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """Return the slices to encode and the windows to decode, by counting.

    Args:
        shape: Voxels of the volume.
        window: Voxels of a window.
        axes: Mirror axes. Flips along depth reuse the tokens, so only flips in plane are encoded again.
    """
    padded = [max(n, w) for n, w in zip(shape, window, strict=True)]
    starts = [len(window_starts(n, w)) for n, w in zip(padded, window, strict=True)]
    plane_flips, flips = 2 ** len([axis for axis in axes if axis != 0]), 2 ** len(axes)
    windows = prod(starts) * flips
    return {"ours": (padded[0] * prod(starts[1:]) * plane_flips, windows), "monai": (windows * window[0], windows)}
