"""Add an encoder: a module with a network and a ``build`` function, and one catalogue entry. Then train with it.

python examples/add_an_encoder.py DATASET OUTPUT [key=value ...]

Inside volseg the module would be ``volseg/models/encoders/<name>.py`` and the entry a line of
``volseg/config/encoders.py``; no other file changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import nn

import volseg
from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.models.contracts import ImageEncoder


class SmallConvNet(ImageEncoder):
    """Patch embedding and convolutions on the grid of tokens."""

    input_weight = "embed.weight"  # reads the image channels

    def __init__(self, entry: EncoderEntry, in_channels: int) -> None:
        super().__init__(entry.patch, entry.width)
        self.embed = nn.Conv2d(in_channels, entry.width, entry.patch, entry.patch)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(entry.width, entry.width, 3, padding=1), nn.GELU()) for _ in range(entry.depth)
        )

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Return the layers after which tokens can be tapped."""
        return list(self.blocks)

    def taps(self, images: torch.Tensor, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return tokens after some layers: ``(B, C, H, W)`` -> ``(B, h * w, E)`` each."""
        x, taps = self.embed(images), []
        for index, layer in enumerate(self.layers):
            x = x + self.run_layer(layer, x)
            if index in indices:
                taps.append(rearrange(x, "b e h w -> b (h w) e"))
        return taps

    def layers_above(self, parameter: str) -> int:
        """Return how many layers follow a parameter's, for layer-wise learning rates."""
        part, index, *_ = parameter.split(".")
        return len(self.blocks) - int(index) if part == "blocks" else len(self.blocks) + 1


def build(entry: EncoderEntry, in_channels: int, *, attend: Callable[..., object], drop_path: float) -> SmallConvNet:
    """Build the network of a catalogue entry with random weights."""
    return SmallConvNet(entry, in_channels)


def main(dataset: str, output: str, *overrides: str) -> int:
    """Register the encoder and train with it for a minute."""
    CATALOGUE["small_convnet"] = EncoderEntry(module=__name__, patch=16, width=48, depth=4, heads=4)
    model = {"encoder": "small_convnet", "weights": "random"}
    config = {"output": output, "data": {"root": dataset}, "model": model, "train": {"max_minutes": 1}}
    result = volseg.train(config, overrides)
    print(result.scores.table)
    return result.scores.exit_code


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
