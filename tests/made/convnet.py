"""A small convolutional encoder that is not part of volseg, and its catalogue entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn

from volseg.config.encoders import EncoderEntry
from volseg.models.attention import AttentionFunction
from volseg.models.contracts import ImageEncoder

ENTRY = EncoderEntry(module=__name__, patch=16, width=24, depth=3, heads=4)


class ConvLayer(nn.Module):
    """Residual depthwise and pointwise convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, E, h, w)`` -> the same shape."""
        return x + self.pointwise(nn.functional.gelu(self.depthwise(x)))  # type: ignore[no-any-return]


class ConvNet(ImageEncoder):
    """Patch embedding and residual convolutions."""

    input_weight = "embed.weight"

    def __init__(self, entry: EncoderEntry, in_channels: int) -> None:
        super().__init__(entry.patch, entry.width)
        self.embed = nn.Conv2d(in_channels, entry.width, entry.patch, entry.patch)
        self.blocks = nn.ModuleList(ConvLayer(entry.width) for _ in range(entry.depth))

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Return the residual layers."""
        return list(self.blocks)

    def taps(self, images: torch.Tensor, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return the features after some layers as tokens: ``(B, C, H, W)`` -> ``(B, h * w, E)`` each."""
        x, taps = self.embed(images), []
        for index, layer in enumerate(self.layers[: indices[-1] + 1]):
            x = self.run_layer(layer, x)
            if index in indices:
                taps.append(rearrange(x, "b e h w -> b (h w) e"))
        return taps

    def layers_above(self, parameter: str) -> int:
        """Return how many layers follow a parameter's."""
        part, index, *_ = parameter.split(".")
        return len(self.blocks) - int(index) if part == "blocks" else len(self.blocks) + 1


def build(entry: EncoderEntry, in_channels: int, *, attend: AttentionFunction, drop_path: float) -> ConvNet:
    """Build the network of a catalogue entry with random weights."""
    return ConvNet(entry, in_channels)
