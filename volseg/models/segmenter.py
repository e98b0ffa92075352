"""The whole network: slices -> tokens -> depth -> voxels."""

from __future__ import annotations

import torch
from torch import nn

from volseg.models.contracts import Decoder, Part, SegmentationNetwork, SpacingMm, pad_to_multiple
from volseg.models.encoders.slices import SliceEncoder


class Segmenter(SegmentationNetwork):
    """Slice encoder, aggregator and decoder as one network.

    Args:
        encoder: Makes the taps; ``None`` is the control without an encoder.
        aggregator: Mixes the taps along depth.
        decoder: Turns taps and voxels into logits.
        spacing_mm: The plan's voxel size along D, H and W.
        adjacent_slices: Slices that enter the encoder as channels (1 or 3); they decide the halo.
    """

    encoder: SliceEncoder | None

    def __init__(
        self,
        encoder: SliceEncoder | None,
        aggregator: nn.Module,
        decoder: Decoder,
        spacing_mm: tuple[float, float, float],
        adjacent_slices: int,
    ) -> None:
        super().__init__(
            encoder=encoder,
            halo=(adjacent_slices - 1) // 2,
            deep_strides=decoder.deep_strides,
            features=decoder.features,
        )
        self.aggregator = aggregator
        self.decoder = decoder
        self.spacing_mm = spacing_mm

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the taps of every slice on its own; H and W are padded to whole tokens.

        Args:
            x: ``(B, C, D + 2 halo, H, W)``, any size.

        Returns:
            Taps ``(B, E, D, h, w)``; none without an encoder.
        """
        if self.encoder is None:
            return []
        _, height, width = self.decoder.multiple
        return self.encoder(pad_to_multiple(x, (1, height, width)))  # type: ignore[no-any-return]

    def decode(
        self, taps: list[torch.Tensor], x: torch.Tensor, spacing_mm: SpacingMm | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Mix taps along depth and decode them with the voxels of the same slices, ``x`` ``(B, C, D, H, W)``."""
        multiple = self.decoder.multiple
        if taps:
            mixed = self.aggregator(taps, self.spacing_mm if spacing_mm is None else spacing_mm)
            taps = [pad_to_multiple(tap, (multiple[0], 1, 1)) for tap in mixed]
        return self.cropped(self.decoder(pad_to_multiple(x, multiple), taps), x.shape[2:])

    def parts(self) -> dict[str, Part]:
        """Return encoder and aggregator, if there is an encoder, and the decoder's parts."""
        parts: dict[str, Part] = {}
        if self.encoder is not None:
            strides = self.encoder.spec.strides
            parts = {"encoder": Part([self.encoder], strides), "aggregator": Part([self.aggregator], strides)}
        return parts | self.decoder.parts()
