"""Reference networks behind the same contract as volseg's own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import nn

from volseg.models.contracts import NetworkPlan, Stride, crop_to, pad_to_multiple
from volseg.models.segmenter import coarse_size

MIN_FEATURE_MAP = 4
BASE_FEATURES = 32
MAX_FEATURES = 320


def unet_topology(spacing_mm: Sequence[float], patch_size: Sequence[int]) -> tuple[list[Stride], list[Stride]]:
    """Strides and kernels of every stage by nnU-Net's rules.

    An axis is halved while it keeps at least 4 voxels and its spacing is within a factor 2 of the finest axis that can
    still be halved. A kernel grows from 1 to 3 along an axis as soon as its spacing is within a factor 2 of the finest.

    Returns:
        Strides (the first is ``(1, 1, 1)``) and kernels, one each for every stage; the bottleneck's kernel is 3.

    Source: ``get_pool_and_conv_props`` in MIC-DKFZ/nnUNet v2, ``network_topology.py``.
    """
    spacing, size, kernel = list(spacing_mm), list(patch_size), [1, 1, 1]
    strides: list[Stride] = [(1, 1, 1)]
    kernels: list[Stride] = []
    while True:
        large = [axis for axis in range(3) if size[axis] >= 2 * MIN_FEATURE_MAP]
        if not large:
            break
        finest = min(spacing[axis] for axis in large)
        chosen = [axis for axis in large if spacing[axis] / finest < 2]
        if len(chosen) == 1 and size[chosen[0]] < 3 * MIN_FEATURE_MAP:
            break
        kernel = [3 if kernel[axis] == 3 or spacing[axis] / min(spacing) < 2 else 1 for axis in range(3)]
        step = [2 if axis in chosen else 1 for axis in range(3)]
        spacing = [value * factor for value, factor in zip(spacing, step, strict=True)]
        size = [-(-value // factor) for value, factor in zip(size, step, strict=True)]
        strides.append((step[0], step[1], step[2]))
        kernels.append((kernel[0], kernel[1], kernel[2]))
    return strides, [*kernels, (3, 3, 3)]


class BaselineNetwork(nn.Module):
    """A MONAI DynUNet with the inputs and outputs of `volseg.models.segmenter.Segmenter`.

    Attributes:
        halo: Slices that the data pipeline adds on each side for volseg's encoder; dropped here.
        deep_strides: Strides of the extra outputs in training.
    """

    def __init__(self, network: nn.Module, strides: Sequence[Stride], extra_outputs: int, halo: int) -> None:
        super().__init__()
        self.network = network
        self.halo = halo
        cumulative = list(accumulate(strides, lambda a, b: (a[0] * b[0], a[1] * b[1], a[2] * b[2])))
        self.multiple = cumulative[-1]
        self.deep_strides: tuple[Stride, ...] = tuple(cumulative[1 : 1 + extra_outputs])

    def forward(self, x: torch.Tensor, spacing_mm: object = None) -> torch.Tensor | list[torch.Tensor]:
        """``(B, C, D + 2 halo, H, W)`` -> logits as a Segmenter gives them; the spacing is not used."""
        x = x[:, :, self.halo : x.shape[2] - self.halo]
        size = x.shape[2:]
        padded = pad_to_multiple(x, self.multiple)
        # DynUNet.forward would enlarge the coarse outputs to full resolution; its parts give them as they are.
        finest = self.network.output_block(self.network.skip_layers(padded))  # type: ignore[operator]
        if not self.training:
            return crop_to(finest, size)
        logits = [finest, *list(self.network.heads)[: len(self.deep_strides)]]  # type: ignore[arg-type]
        strides = [(1, 1, 1), *self.deep_strides]
        return [crop_to(level, coarse_size(size, stride)) for level, stride in zip(logits, strides, strict=True)]


def build_dynunet(plan: NetworkPlan, halo: int = 0) -> BaselineNetwork:
    """MONAI's DynUNet with the stages, strides, kernels and widths nnU-Net plans for the same patch and spacing."""
    from monai.networks.nets.dynunet import DynUNet

    strides, kernels = unet_topology(plan.spacing_mm, plan.patch_size)
    extra_outputs = max(0, len(strides) - 2)
    network = DynUNet(
        spatial_dims=3,
        in_channels=plan.num_channels,
        out_channels=plan.num_classes,
        kernel_size=kernels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(BASE_FEATURES * 2**stage, MAX_FEATURES) for stage in range(len(strides))],
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=extra_outputs > 0,
        deep_supr_num=max(1, extra_outputs),
    )
    return BaselineNetwork(network, strides, extra_outputs, halo)
