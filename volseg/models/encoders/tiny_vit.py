"""TinyViT as the image encoder of LiteMedSAM, in plain torch, with the official state-dict keys.

A hierarchical network: convolutions, then attention in windows at three resolutions, so that its taps have several
strides. Unlike in the TinyViT of ImageNet, the first layer keeps the pixels and the last does not halve them.

Source: Wu et al. 2022, "TinyViT: Fast Pretraining Distillation for Small Vision Transformers"; LiteMedSAM,
github.com/bowang-lab/MedSAM, branch LiteMedSAM, ``tiny_vit_sam.py``. Weights: Ma et al. 2024, "Segment anything in
medical images", distilled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from volseg.config.encoders import EncoderEntry
from volseg.models.attention import AttentionFunction
from volseg.models.contracts import ImageEncoder, State
from volseg.models.encoders.layers import DropPath, Mlp

WIDTHS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)
"""Tokens along the side of an attention window in each stage; the first stage has none."""
PIXELS = (1, 2, 4, 4)
"""Pixels along the side of a token in each stage."""
EXPANSION = 4
INPUT_SCALE, INPUT_SHIFT = 0.25, 0.25
"""The network was trained on images from 0 to 1. Channels of the plan have mean 0 and deviation 1, and mostly lie
between -1 and 3."""


class ConvNorm(nn.Sequential):
    """A convolution without bias and a batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(outputs))


class PatchEmbed(nn.Module):
    """Two 1x1 convolutions on the pixels."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(in_channels, width // 2), nn.GELU(), ConvNorm(width // 2, width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> ``(B, E, H, W)``."""
        return self.seq(images)  # type: ignore[no-any-return]


class MbConv(nn.Module):
    """Inverted bottleneck: 1x1, 3x3 per channel, 1x1, and the input added.

    Source: Sandler et al. 2018, "MobileNetV2".
    """

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        hidden = width * EXPANSION
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, E, h, w)`` -> ``(B, E, h, w)``."""
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.drop_path(self.conv3(hidden)))


class PatchMerging(nn.Module):
    """Widen the tokens between two stages, and halve their rows and columns with a stride of 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, E, h, w)`` -> ``(B, E', h / stride, w / stride)``, sizes rounded up."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Self-attention within a window, with a learned bias for each distance in rows and columns.

    It always runs torch's fused kernel, which takes the bias; windows have 49 or 196 tokens.

    Args:
        width: Channels E.
        heads: Attention heads.
        window: Tokens along the side of a window.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))

    def bias(self) -> torch.Tensor:
        """Return the bias of each pair of tokens, ``(heads, N, N)``."""
        place = torch.arange(self.window**2, device=self.attention_biases.device)
        row, column = place // self.window, place % self.window
        rows, columns = ((axis[:, None] - axis).abs() for axis in (row, column))  # distances, (N, N)
        return self.attention_biases[:, rows * self.window + columns]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, E)`` -> ``(B, N, E)``."""
        query, key, value = rearrange(self.qkv(self.norm(x)), "b n (h three e) -> three b h n e", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias().to(query.dtype))
        return self.proj(rearrange(mixed, "b h n e -> b n (h e)"))  # type: ignore[no-any-return]


class NormMlp(Mlp):
    """A norm and two layers with GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__(width, EXPANSION * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., E)`` -> ``(..., E)``."""
        return super().forward(self.norm(x))


class WindowBlock(nn.Module):
    """Attention in windows, a 3x3 convolution per channel, and an MLP."""

    def __init__(self, width: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = NormMlp(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, E, h, w)`` -> ``(B, E, h, w)``. Incomplete windows are filled with zeros, which take part."""
        window, (height, width) = self.attn.window, x.shape[-2:]
        padded = F.pad(x, (0, -width % window, 0, -height % window))
        windows = rearrange(padded, "b e (h i) (w j) -> (b h w) (i j) e", i=window, j=window)
        mixed = rearrange(
            self.attn(windows),
            "(b h w) (i j) e -> b e (h i) (w j)",
            i=window,
            j=window,
            h=padded.shape[-2] // window,
            w=padded.shape[-1] // window,
        )[..., :height, :width]
        x = rearrange(self.local_conv(x + self.drop_path(mixed)), "b e h w -> b h w e")
        return rearrange(x + self.drop_path(self.mlp(x)), "b h w e -> b e h w")  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks of one resolution, and the step to the next."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks alone: ``(B, E, h, w)`` -> ``(B, E, h, w)``."""
        for block in self.blocks:
            x = block(x)
        return x

    def step_down(self, x: torch.Tensor) -> torch.Tensor:
        """Bring the tokens to the width and the resolution of the next stage; the last stage keeps them."""
        return x if self.downsample is None else self.downsample(x)


class ChannelNorm(nn.Module):
    """Normalise the channels of each token of ``(B, E, h, w)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, E, h, w)`` -> ``(B, E, h, w)``."""
        x = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.movedim(-1, 1)


class TinyVit(ImageEncoder):
    """LiteMedSAM's image encoder.

    The four taps are the outputs of the stages, the last one after the neck, each normalised over its channels without
    learned parameters, because the stages have no final norm.

    Args:
        entry: Its catalogue entry.
        in_channels: Image channels.
        drop_path: Stochastic-depth rate of the last block; it rises linearly from 0.
    """

    input_weight = "patch_embed.seq.0.c.weight"
    attention_layers = ("qkv", "proj")
    mlp_layers = ("fc1", "fc2")
    undecayed = ("attention_biases",)
    chunk_pixels = 2 * 256 * 256  # the first stage has 256 channels for every pixel

    def __init__(self, entry: EncoderEntry, in_channels: int = 3, drop_path: float = 0.0) -> None:
        super().__init__(entry.patch, entry.width)
        self.patch_embed = PatchEmbed(in_channels, WIDTHS[0])
        rates = [drop_path * index / (sum(DEPTHS) - 1) for index in range(sum(DEPTHS))]
        stages = []
        for number, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            dropped, rates = rates[:depth], rates[depth:]
            blocks: list[nn.Module] = [
                WindowBlock(width, HEADS[number], WINDOWS[number], rate) if number else MbConv(width, rate)
                for rate in dropped
            ]
            last = number == len(WIDTHS) - 1
            step = None if last else PatchMerging(width, WIDTHS[number + 1], PIXELS[number + 1] // PIXELS[number])
            stages.append(Stage(blocks, step))
        self.stages = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTHS[-1], entry.width, 1, bias=False),
            ChannelNorm(entry.width),
            nn.Conv2d(entry.width, entry.width, 3, padding=1, bias=False),
            ChannelNorm(entry.width),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> TinyVit:
        """Set training mode; a batch norm whose weight is not trained keeps its running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(mode and module.weight.requires_grad)
        return self

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Return the stages."""
        return self._stages

    @property
    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.stages))

    def layers_above(self, parameter: str) -> int:
        """Return how many layers follow a parameter's: patch embedding, blocks, neck."""
        part = re.match(r"stages\.(\d)\.(?:blocks\.(\d)\.)?", parameter)
        if part is None:
            return 0 if parameter.startswith("neck.") else sum(DEPTHS) + 1
        stage = int(part[1])
        block = int(part[2]) if part[2] else DEPTHS[stage] - 1  # the step down belongs to the last block
        return sum(DEPTHS[stage:]) - block

    def official_state(self, state: State) -> dict[str, torch.Tensor]:
        """Return a file's tensors under this network's names: those of LiteMedSAM's image encoder, or of that alone.

        Prompt encoder and mask decoder are left out.
        """
        prefix = "image_encoder."
        if any(key.startswith(prefix) for key in state):
            others = ("prompt_encoder.", "mask_decoder.")
            state = {key.removeprefix(prefix): value for key, value in state.items() if not key.startswith(others)}
        return {re.sub(r"^layers\.", "stages.", key): value for key, value in state.items()}

    def tap_shapes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Return pixels along the side of a token and channels after each of some stages."""
        return [(PIXELS[index], (*WIDTHS[:-1], self.width)[index]) for index in indices]

    def taps(self, images: torch.Tensor, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return the tokens after some stages, normalised over their channels.

        Args:
            images: ``(B, C, H, W)``, mean 0 and deviation 1; H and W are multiples of 4.
            indices: Ascending numbers of stages; none after the last of them is run.

        Returns:
            For each index ``(B, h * w, E)``, as in `tap_shapes`.
        """
        x, taps = self.patch_embed(images * INPUT_SCALE + INPUT_SHIFT), []
        for index, stage in enumerate(self._stages[: indices[-1] + 1]):
            x = self.run_layer(stage, x)
            if index in indices:
                tap = rearrange(self.neck(x) if index == len(DEPTHS) - 1 else x, "b e h w -> b (h w) e")
                taps.append(F.layer_norm(tap, tap.shape[-1:], eps=1e-6))
            if index < indices[-1]:
                x = stage.step_down(x)
        return taps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the output of the neck, without the tap's norm: ``(B, C, H, W)`` from 0 to 1 -> ``(B, E, h, w)``."""
        x = self.patch_embed(images)
        for stage in self._stages:
            x = stage.step_down(self.run_layer(stage, x))
        return self.neck(x)  # type: ignore[no-any-return]


def build(entry: EncoderEntry, in_channels: int, *, attend: AttentionFunction, drop_path: float) -> TinyVit:
    """Build the network with random weights; its windows have a kernel of their own."""
    return TinyVit(entry, in_channels, drop_path)
