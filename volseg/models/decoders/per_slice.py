"""Decoders that use one slice at a time and no raw voxels, as in the DINOv2 study on radiology benchmarks.

Source: Baharoon et al. 2023, "Evaluating General Purpose Vision Foundation Models for Medical Image Analysis: An
Experimental Study of DINOv2 on Radiology Benchmarks", arXiv 2312.02366.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from volseg.models.contracts import Decoder, FeatureSpec


class LinearDecoder(Decoder):
    """Linear probe: one 1x1 classifier on the last tap, its logits enlarged bilinearly in plane.

    Args:
        num_classes: Classes, background included.
        taps: Channels and strides of the taps; only the last is used.
    """

    def __init__(self, *, num_classes: int, taps: FeatureSpec) -> None:
        super().__init__()
        self.multiple = taps.strides[-1]
        self.head = nn.Conv2d(taps.channels[-1], num_classes, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, taps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute logits ``(B, K, D, H, W)``, the only element of the list.

        Args:
            x: Voxels ``(B, C, D, H, W)``; only their size is used.
            taps: ``(B, E, D, h, w)`` each.
        """
        logits = self.head(rearrange(taps[-1], "b e d h w -> (b d) e h w"))
        logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return [rearrange(logits, "(b d) k h w -> b k d h w", b=len(x))]


class UpBlock(nn.Module):
    """One step up: transposed convolution, concatenated with a tap that was projected and enlarged.

    Args:
        inputs: Channels of the deeper level.
        outputs: Channels of the result.
        tap: Channels of the tap; 0 where there is none.
        step: 2 doubles the sides, 1 keeps them.
    """

    def __init__(self, inputs: int, outputs: int, tap: int, step: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, step, step)
        self.skip = _conv(tap, outputs) if tap else None
        self.conv = _conv(2 * outputs if tap else outputs, outputs)

    def forward(self, x: torch.Tensor, tap: torch.Tensor | None) -> torch.Tensor:
        """``(N, C, H, W)`` and a tap ``(N, E, h, w)`` -> ``(N, C', H * step, W * step)``."""
        x = self.up(x)
        if self.skip is not None:
            skip = F.interpolate(self.skip(tap), size=x.shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([x, skip], dim=1)
        return self.conv(x)  # type: ignore[no-any-return]


class UnetDecoder2d(Decoder):
    """Per-slice U-Net decoder: from the last tap upwards, each step halves the width and takes the next tap.

    Five taps make four steps. At token stride 16 each step doubles the sides, as in the study; at 8 and 4 the first
    steps keep the token stride. Unlike in the study's code, a 1x1 classifier follows the last step (there its ReLU
    gives the logits), and resizing has half-pixel centres.

    Args:
        num_classes: Classes, background included.
        taps: Channels and strides of the taps.
    """

    def __init__(self, *, num_classes: int, taps: FeatureSpec) -> None:
        super().__init__()
        self.multiple = taps.strides[-1]
        doublings = self.multiple[-1].bit_length() - 1  # the token stride is a power of 2
        count = max(len(taps) - 1, doublings)
        widths = [max(1, taps.channels[-1] // 2**step) for step in range(count + 1)]
        skips = [*reversed(taps.channels[:-1]), *[0] * count][:count]
        self.blocks = nn.ModuleList(
            UpBlock(widths[index], widths[index + 1], skips[index], 2 if index >= count - doublings else 1)
            for index in range(count)
        )
        self.head = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, x: torch.Tensor, taps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute logits ``(B, K, D, H, W)``, the only element of the list.

        Args:
            x: Voxels ``(B, C, D, H, W)``; only their number of samples is used.
            taps: ``(B, E, D, h, w)`` each.
        """
        slices = [rearrange(tap, "b e d h w -> (b d) e h w") for tap in taps]
        features, shallow = slices[-1], [*reversed(slices[:-1]), *[None] * len(self.blocks)]
        for block, tap in zip(self.blocks, shallow, strict=False):
            features = block(features, tap)
        return [rearrange(self.head(features), "(b d) k h w -> b k d h w", b=len(x))]


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    """Build a 3x3 convolution with batch norm over all slices and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
