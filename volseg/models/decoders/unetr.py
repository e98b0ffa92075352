"""UNETR-style decoder: a convolutional stem on the raw voxels, joined level by level with the encoder's taps.

Source: Hatamizadeh et al. 2022, "UNETR"; widths, kernels, norms and deep supervision as in
Isensee et al. 2021, "nnU-Net".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from volseg.config.levels import Stride, conv_kernel
from volseg.models.contracts import Decoder, FeatureSpec, Part
from volseg.models.kernels import Conv3d, InstanceNorm, PointwiseConv, mean_of_slices, to_channels_last


def relative(deep: Stride, shallow: Stride) -> Stride:
    """Return the stride that leads from one level to a deeper one."""
    depth, height, width = (a // b for a, b in zip(deep, shallow, strict=True))
    return depth, height, width


def conv_block(inputs: int, outputs: int, kernel: Stride, stride: Stride = (1, 1, 1)) -> nn.Sequential:
    """Build a convolution with instance norm and leaky ReLU."""
    kernel_depth = max(kernel[0], stride[0])  # a stride longer than the kernel would skip slices
    padding = ((kernel_depth - 1) // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        Conv3d(inputs, outputs, (kernel_depth, *kernel[1:]), stride, padding, bias=False),
        InstanceNorm(outputs),
        nn.LeakyReLU(0.01, inplace=True),
    )


class TapFusion(nn.Module):
    """Project taps to a level's width at token stride, then bring them to the level's grid.

    Args:
        inputs: Channels of each tap that enters here.
        outputs: The level's width.
        pool: Slices of the taps to one slice of the level.
        scale: In-plane steps of the level to one token.
    """

    def __init__(self, inputs: Sequence[int], outputs: int, pool: int, scale: int) -> None:
        super().__init__()
        self.pool = pool
        self.scale = scale
        self.proj = PointwiseConv(sum(inputs), outputs)

    def forward(self, taps: Sequence[torch.Tensor]) -> torch.Tensor:
        """``(B, E, D, h, w)`` each -> ``(B, C, D / pool, h * scale, w * scale)``."""
        x: torch.Tensor = self.proj(torch.cat(list(taps), dim=1) if len(taps) > 1 else taps[0])
        if self.pool > 1:
            x = mean_of_slices(x, self.pool)
        if self.scale > 1:
            batch = len(x)
            x = rearrange(x, "b c d h w -> (b d) c h w")
            x = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
            x = rearrange(x, "(b d) c h w -> b c d h w", b=batch)
        return x


class UnetrDecoder(Decoder):
    """Stem, taps and up path.

    Level ``l`` works at ``strides[l]`` with ``min(features * 2**l, max_features)`` channels. Taps enter at the level of
    their own stride or above it, see `assign_taps`; level 0 has raw voxels only. The levels below the last tap see more
    of the scan: there the stem goes on from the sum of stem and tap. Stem, taps and the output of the deeper level are
    added, not concatenated, which halves the input of the widest convolutions. The projections of the taps start at
    zero, so the initial result is bitwise identical to that of the stem alone. Without a stem a level has its taps, a
    level without taps only the output of the deeper level, and there is no level below the last tap.

    Args:
        image_channels: Channels of the image.
        num_classes: Classes, background included.
        strides: Cumulative stride of each level; level 0 is ``(1, 1, 1)``.
        spacing_mm: Voxel size, which decides the kernels.
        taps: Channels and strides of the taps; empty for the control without an encoder.
        features: Channels at level 0.
        max_features: Upper limit of the channels.
        stem: Whether raw voxels enter.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        num_classes: int,
        strides: Sequence[Stride],
        spacing_mm: Sequence[float],
        taps: FeatureSpec,
        features: int,
        max_features: int = 320,
        stem: bool = True,
    ) -> None:
        super().__init__()
        self.tap_levels = assign_taps(taps, strides)
        if not stem:
            strides = strides[: max(self.tap_levels) + 1]
        levels = len(strides)
        self.multiple = strides[-1]
        self.deep_strides = tuple(strides[1:-1])
        self.features = features
        widths = [min(features * 2**level, max_features) for level in range(levels)]
        kernels = [conv_kernel(stride, spacing_mm) for stride in strides]
        steps = [relative(strides[level], strides[max(0, level - 1)]) for level in range(levels)]
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(widths[level + 1], widths[level], steps[level + 1], steps[level + 1], bias=False)
            for level in range(levels - 1)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv_block(widths[level], widths[level], kernels[level]),
                conv_block(widths[level], widths[level], kernels[level]),
            )
            for level in range(levels - 1)
        )
        self.heads = nn.ModuleList(PointwiseConv(widths[level], num_classes) for level in range(levels - 1))
        self.apply(_initialise)
        # then the parts that a control lacks, so that all other parts start with the same weights
        self.stem = nn.ModuleList(
            nn.Sequential(
                conv_block(widths[level - 1] if level else image_channels, widths[level], kernels[level], steps[level]),
                conv_block(widths[level], widths[level], kernels[level]),
            )
            for level in range(levels if stem else 0)
        ).apply(_initialise)
        self.input_weight = "stem.0.0.0.weight" if stem else None
        self.fusions = nn.ModuleDict()
        for level, indices in self.tap_levels.items():
            pool, scale = strides[level][0], taps.strides[indices[0]][1] // strides[level][1]
            fusion = TapFusion([taps.channels[i] for i in indices], widths[level], pool, scale)
            self.fusions[str(level)] = fusion.apply(_initialise)
            if stem:  # the network starts as its control without an encoder
                nn.init.zeros_(fusion.proj.weight)

    def forward(self, x: torch.Tensor, taps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the logits of all levels but the deepest, finest first; outside of training the finest only.

        Args:
            x: Raw voxels ``(B, C, D, H, W)``, whole multiples of the deepest stride.
            taps: ``(B, E, D, h, w)`` each.
        """
        skips = self.skips(x, taps)
        x, logits = skips[len(self.ups)], []
        for level in reversed(range(len(self.ups))):
            x = self.ups[level](x)
            x = self.blocks[level](x + skips[level] if level in skips else x)
            if self.training or level == 0:
                logits.append(self.heads[level](x))
        return logits[::-1]

    def skips(self, x: torch.Tensor, taps: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Compute what each level adds to the output of the deeper one: stem plus taps."""
        fused = {
            level: self.fusions[str(level)]([taps[index] for index in indices])
            for level, indices in self.tap_levels.items()
        }
        last = max(fused, default=None)
        skips, x = {}, to_channels_last(x)
        for level, stage in enumerate(self.stem):
            x = stage(x)
            skips[level] = x + fused.pop(level) if level in fused else x
            if level == last:  # the levels below see the tokens too
                x = skips[level]
        return skips | {level: to_channels_last(tokens) for level, tokens in fused.items()}

    def parts(self) -> dict[str, Part]:
        """Return the stem, if there is one, and the whole decoder."""
        parts = super().parts()
        blocks = [block for stage in self.stem for block in stage.children()]
        if not blocks:
            return parts
        return {"stem": Part(blocks, (*parts["decoder"].strides, self.multiple)), **parts}


def assign_taps(taps: FeatureSpec, strides: Sequence[Stride]) -> dict[int, tuple[int, ...]]:
    """Return which taps enter at which level.

    The last of the taps of one stride enters at the level of that stride. Those before it take one finer level each,
    from the finest free one below level 0 on, and what remains joins the last: four taps at the level 3 of stride 8
    enter at 1, 2, 3 and 3.

    Args:
        taps: Channels and strides of the taps, shallow to deep.
        strides: Cumulative stride of each level.
    """
    level_of = {stride[1]: level for level, stride in enumerate(strides)}
    assigned: dict[int, tuple[int, ...]] = {}
    free = 1
    for own, group in groupby(range(len(taps)), key=lambda index: level_of[taps.strides[index][1]]):
        indices = list(group)
        while len(indices) > 1 and free < own:
            assigned[free] = (indices.pop(0),)
            free += 1
        assigned[own] = tuple(indices)
        free = own + 1
    return assigned


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
