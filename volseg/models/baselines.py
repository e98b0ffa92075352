"""Reference networks from MONAI, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from einops import rearrange
from torch import nn

from volseg.config.levels import Stride
from volseg.errors import ConfigError, counted
from volseg.models.contracts import NetworkPlan, SegmentationNetwork, SpacingMm, pad_to_multiple

MIN_FEATURE_MAP = 4
BASE_FEATURES = 32
MAX_FEATURES = 320
LEAST_STAGES = 3
"""MONAI's DynUNet has no fewer."""
UNETR_PATCH = 16
SWIN_MULTIPLE = (32, 32, 64)
"""Its instance norms need more than one voxel at stride 32."""


def unet_topology(spacing_mm: Sequence[float], patch_size: Sequence[int]) -> tuple[list[Stride], list[Stride]]:
    """Return the strides and kernels of every stage by nnU-Net's rules.

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
        halved = [axis for axis in large if spacing[axis] / finest < 2]
        if len(halved) == 1 and size[halved[0]] < 3 * MIN_FEATURE_MAP:
            break
        kernel = [3 if kernel[axis] == 3 or spacing[axis] / min(spacing) < 2 else 1 for axis in range(3)]
        step = [2 if axis in halved else 1 for axis in range(3)]
        spacing = [value * factor for value, factor in zip(spacing, step, strict=True)]
        size = [-(-value // factor) for value, factor in zip(size, step, strict=True)]
        strides.append((step[0], step[1], step[2]))
        kernels.append((kernel[0], kernel[1], kernel[2]))
    return strides, [*kernels, (3, 3, 3)]


class BaselineNetwork(SegmentationNetwork):
    """A network of MONAI as a `SegmentationNetwork` without an encoder.

    Args:
        network: The network.
        multiple: Voxels along D, H and W of which its input is a whole multiple.
        deep_strides: Strides of the extra outputs in training, which `levels` returns.
        halo: Slices that the data pipeline adds on each side for volseg's encoder; not used here.
    """

    def __init__(self, network: nn.Module, multiple: Stride, halo: int, deep_strides: tuple[Stride, ...] = ()) -> None:
        super().__init__(halo=halo, deep_strides=deep_strides, features=BASE_FEATURES)
        self.network = network
        self.multiple = multiple

    def decode(
        self, taps: list[torch.Tensor], x: torch.Tensor, spacing_mm: SpacingMm | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Compute the logits of voxels ``(B, C, D, H, W)``; neither taps nor spacing are used."""
        return self.cropped(self.levels(pad_to_multiple(x, self.multiple)), x.shape[2:])

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of padded voxels, finest first, those of ``deep_strides`` in training only."""
        return [self.network(x)]


class DynUnet(BaselineNetwork):
    """MONAI's DynUNet with deep supervision."""

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of padded voxels, finest first, those of ``deep_strides`` in training only."""
        # DynUNet.forward would enlarge the coarse outputs to full resolution; its parts return them as they are.
        finest = self.network.output_block(self.network.skip_layers(x))  # type: ignore[operator]
        heads = self.network.heads if self.training else ()
        return [finest, *list(heads)[: len(self.deep_strides)]]  # type: ignore[arg-type]


class Unetr(BaselineNetwork):
    """MONAI's UNETR, whose position embedding allows one size of input only; a larger one is cut into blocks."""

    def __init__(self, network: nn.Module, multiple: Stride, halo: int) -> None:
        super().__init__(network, multiple, halo)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("cross_attn" not in name)  # layers of MONAI's blocks that are never called

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of padded voxels, as the only element of the list."""
        depth, height, width = self.multiple
        sizes = {"d": depth, "h": height, "w": width}
        counts = {"i": x.shape[2] // depth, "j": x.shape[3] // height, "k": x.shape[4] // width}
        blocks = rearrange(x, "b c (i d) (j h) (k w) -> (b i j k) c d h w", **sizes)
        return [rearrange(self.network(blocks), "(b i j k) c d h w -> b c (i d) (j h) (k w)", **counts)]


def build_baseline(name: str, plan: NetworkPlan, halo: int = 0) -> BaselineNetwork:
    """Build a reference network of MONAI.

    Args:
        name: ``dynunet``; ``unetr`` or ``swinunetr`` with the sizes that are MONAI's defaults, a single output, and
            patches rounded up to the multiples that they need.
        plan: The plan; its patch, spacing, channels and classes are used.
        halo: Slices that the data pipeline adds on each side.
    """
    if name == "dynunet":
        return build_dynunet(plan, halo)
    inputs, outputs = plan.num_channels, plan.num_classes
    if name == "unetr":
        from monai.networks.nets.unetr import UNETR

        depth, height, width = (-(-size // UNETR_PATCH) * UNETR_PATCH for size in plan.patch_size)
        return Unetr(UNETR(inputs, outputs, img_size=(depth, height, width)), (depth, height, width), halo)
    from monai.networks.nets.swin_unetr import SwinUNETR

    device = torch.get_default_device()
    with torch.device("cpu"):  # it reads values of tensors, which the meta device does not have
        network = SwinUNETR(inputs, outputs)
    return BaselineNetwork(network.to(device), SWIN_MULTIPLE, halo)


def build_dynunet(plan: NetworkPlan, halo: int = 0) -> BaselineNetwork:
    """Build MONAI's DynUNet with the stages, strides, kernels and widths that nnU-Net plans for patch and spacing."""
    from monai.networks.nets.dynunet import DynUNet

    strides, kernels = unet_topology(plan.spacing_mm, plan.patch_size)
    if len(strides) < LEAST_STAGES:
        raise ConfigError(
            "the patch is too small for model.baseline=dynunet",
            found=f"{' x '.join(map(str, plan.patch_size))} voxels: {counted(len(strides), 'stage')}",
            expected=f"{LEAST_STAGES} stages: at least 16 voxels along an axis",
            hint="set a larger plan.patch_size",
        )
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
    cumulative = list(accumulate(strides, lambda a, b: (a[0] * b[0], a[1] * b[1], a[2] * b[2])))
    return DynUnet(network, cumulative[-1], halo, tuple(cumulative[1 : 1 + extra_outputs]))
