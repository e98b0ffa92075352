"""The whole network: slices -> tokens -> depth -> voxels."""

from __future__ import annotations

import torch
from torch import nn

from volseg.models.aggregate import SpacingMm
from volseg.models.contracts import Decoder, Stride, crop_to, pad_to_multiple
from volseg.models.encoders.slices import SliceEncoder


class Segmenter(nn.Module):
    """Slice encoder, aggregator and decoder as one module.

    Attributes:
        halo: Slices the input carries beyond the output on each side.
        deep_strides: Strides of the extra outputs in training.
        pretrained: Whether it, or its encoder, started from a file (see `volseg.models.build.parameter_groups`).
    """

    def __init__(
        self,
        encoder: SliceEncoder | None,
        aggregator: nn.Module,
        decoder: Decoder,
        spacing_mm: tuple[float, float, float],
        adjacent_slices: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.aggregator = aggregator
        self.decoder = decoder
        self.spacing_mm = spacing_mm
        self.halo = (adjacent_slices - 1) // 2
        self.deep_strides: tuple[Stride, ...] = decoder.deep_strides
        self.pretrained = False

    def forward(
        self, x: torch.Tensor, spacing_mm: SpacingMm | None = None, taps: list[torch.Tensor] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Logits of the slices between the halos.

        Args:
            x: ``(B, C, D + 2 halo, H, W)``, any size.
            spacing_mm: Voxel size along D, H and W, ``(3,)`` or ``(B, 3)``; the plan's if left out.
            taps: What `encode` gave for ``x`` before; the encoder is not run then.

        Returns:
            ``(B, K, D, H, W)``; in training a list of it and the logits at each of ``deep_strides``.
        """
        centre = x[:, :, self.halo : x.shape[2] - self.halo]
        return self.decode(self.encode(x) if taps is None else taps, centre, spacing_mm)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Taps of every slice on its own: ``(B, C, D + 2 halo, H, W)`` -> ``(B, E, D, h, w)`` each.

        H and W are padded to whole tokens. Without an encoder the list is empty.
        """
        if self.encoder is None:
            return []
        _, height, width = self.decoder.multiple
        return self.encoder(pad_to_multiple(x, (1, height, width)))  # type: ignore[no-any-return]

    def decode(
        self, taps: list[torch.Tensor], x: torch.Tensor, spacing_mm: SpacingMm | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Mix taps along depth and decode them with the voxels of the same slices, ``x`` ``(B, C, D, H, W)``."""
        size = x.shape[2:]
        multiple = self.decoder.multiple
        if taps:
            mixed = self.aggregator(taps, self.spacing_mm if spacing_mm is None else spacing_mm)
            taps = [pad_to_multiple(tap, (multiple[0], 1, 1)) for tap in mixed]
        logits = self.decoder(pad_to_multiple(x, multiple), taps)
        if not self.training:
            return crop_to(logits[0], size)
        strides = [(1, 1, 1), *self.deep_strides]
        return [crop_to(level, coarse_size(size, stride)) for level, stride in zip(logits, strides, strict=True)]


def coarse_size(size: torch.Size, stride: Stride) -> list[int]:
    """Voxels at a stride that are needed to cover ``size``."""
    return [-(-length // step) for length, step in zip(size, stride, strict=True)]
