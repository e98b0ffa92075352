"""What the parts of a model promise each other: feature shapes, the plan's fields, padding to whole tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

Stride = tuple[int, int, int]


@dataclass(frozen=True)
class FeatureSpec:
    """Shapes of a list of feature maps, shallow to deep.

    Attributes:
        channels: Channels of each map.
        strides: Voxels per feature of each map along D, H and W.
    """

    channels: tuple[int, ...] = ()
    strides: tuple[Stride, ...] = ()

    def __len__(self) -> int:
        return len(self.channels)


class NetworkPlan(Protocol):
    """The fields of a plan that a network is built from."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along D, H and W."""

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """Training patch in voxels."""

    @property
    def token_stride(self) -> int:
        """Voxels per token in plane."""

    @property
    def decoder_strides(self) -> tuple[Stride, ...]:
        """Cumulative stride of each decoder level; level 0 is ``(1, 1, 1)``."""

    @property
    def num_classes(self) -> int:
        """Classes, background included."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index, background first."""

    @property
    def num_channels(self) -> int:
        """Image channels (modalities)."""


class Decoder(Protocol):
    """What `volseg.models.segmenter.Segmenter` asks of a decoder."""

    multiple: Stride
    """Voxels along D, H and W of which the input is a whole multiple."""
    deep_strides: tuple[Stride, ...]
    """Strides of the extra outputs in training."""

    def __call__(self, x: torch.Tensor, taps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Logits of voxels ``(B, C, D, H, W)``, finest first; outside of training the finest only."""


def pad_to_multiple(x: torch.Tensor, multiple: Sequence[int]) -> torch.Tensor:
    """Repeat the last voxels until the trailing axes are whole multiples.

    Args:
        x: ``(B, C, *spatial)``, three spatial axes.
        multiple: One positive integer for each spatial axis.

    Returns:
        ``x`` itself where nothing is missing. The original voxels keep their index.
    """
    missing = [-size % factor for size, factor in zip(x.shape[2:], multiple, strict=True)]
    if not any(missing):
        return x
    pads = [amount for size in reversed(missing) for amount in (0, size)]
    return F.pad(x, pads, mode="replicate")


def crop_to(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Undo `pad_to_multiple`: keep the first ``size`` voxels of ``(B, C, D, H, W)``."""
    depth, height, width = size
    return x[:, :, :depth, :height, :width]
