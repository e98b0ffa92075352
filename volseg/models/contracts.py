"""Contracts between the parts of a network: plan, encoders, decoder, network; feature shapes and padding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from volseg.config.levels import Stride

SpacingMm = torch.Tensor | tuple[float, float, float]
"""Voxel size along D, H and W: three numbers, or a tensor ``(3,)`` or ``(B, 3)``."""
State = Mapping[str, torch.Tensor]
"""Tensors by name, as in a state dict."""


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


@dataclass(frozen=True)
class Part:
    """A part of a network whose cost is reported on its own.

    Attributes:
        modules: Modules whose calls make up the part.
        strides: Stride of each output.
    """

    modules: Sequence[nn.Module]
    strides: tuple[Stride, ...]


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
        """Outputs: the classes, and the background where they exclude each other."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs, the background first where there is one."""

    @property
    def region_indices(self) -> tuple[tuple[int, ...], ...]:
        """Class indices of the labels of each region; nothing where classes exclude each other."""

    @property
    def num_channels(self) -> int:
        """Image channels (modalities)."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image channels."""


class ImageEncoder(nn.Module, ABC):
    """A 2D network that turns images into tokens. A new encoder implements this class.

    `volseg.models.encoders.slices.SliceEncoder` runs it over the slices of a volume.

    Args:
        patch: Pixels along the side of the square that becomes one token.
        width: Channels E of the last tap.

    Attributes:
        chunk_pixels: Pixels encoded at once where activations are not kept; limits the memory of a deep volume.
        checkpoint_layers: Keep only the input of each layer for the backward pass, and run the layer again there.
        input_weight: Name of the weight that reads the image channels, ``(E, C, ...)``; weights of an RGB network are
            adapted there.
        attention_layers: Attribute names of the attention's linear layers, for LoRA.
        mlp_layers: Attribute names of the feed-forward linear layers, for LoRA.
        undecayed: Ends of the names of parameters without weight decay, beside norms and biases.
    """

    input_weight: str
    attention_layers: tuple[str, ...] = ()
    mlp_layers: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()
    chunk_pixels: int = 16 * 518 * 518

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.width = width
        self.checkpoint_layers = False

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """Return the layers after which tokens can be tapped, in the order in which they run."""

    @abstractmethod
    def taps(self, images: torch.Tensor, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return the tokens after some layers.

        Args:
            images: ``(B, C, H, W)``; H and W are multiples of ``patch``.
            indices: Ascending numbers of layers.

        Returns:
            ``(B, h * w, E)`` for each index; ``h = H / pixels`` and ``w = W / pixels`` with the pixels of `tap_shapes`.
        """

    def class_and_patch_tokens(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the class token, ``None`` in a network without one, and the tokens of the last tap, in one pass.

        Args:
            images: ``(B, C, H, W)``; H and W are multiples of ``patch``.

        Returns:
            ``(B, E)`` or ``None``, and ``(B, h * w, E)``.
        """
        return None, self.taps(images, [len(self.layers) - 1])[0]

    def tap_shapes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Return pixels along the side of a token, and channels, after some layers; coarser ones may only follow."""
        return [(self.patch, self.width)] * len(indices)

    @abstractmethod
    def layers_above(self, parameter: str) -> int:
        """Return how many layers follow the one that a parameter, by its name in this network, belongs to."""

    def official_state(self, state: State) -> dict[str, torch.Tensor]:
        """Return a weight file's tensors under this network's names; unknown names are kept."""
        return dict(state)

    def run_layer(self, layer: nn.Module, tokens: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        """Run one of ``layers``, on its tokens and other inputs, with or without keeping its activations."""
        if self.checkpoint_layers and torch.is_grad_enabled():
            return checkpoint(layer, tokens, *more, use_reentrant=False)  # type: ignore[no-any-return]
        return layer(tokens, *more)  # type: ignore[no-any-return]


class VolumeEncoder(nn.Module, ABC):
    """Turn a volume into taps, each slice independent of all but its halo.

    Attributes:
        spec: Channels and strides of the taps.
        patch: Pixels along the side of a token of the last tap in the images that the encoder works on.
        token_stride: Voxels along the side of such a token.
        undecayed: Ends of the names of parameters without weight decay, beside norms and biases.
        frozen: Nothing is trained: evaluation mode at all times, and no graph.
    """

    spec: FeatureSpec
    patch: int
    token_stride: int
    undecayed: tuple[str, ...] = ()
    frozen: bool = False

    @abstractmethod
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """``(B, C, D + 2 halo, H, W)`` -> taps ``(B, E, D, h, w)``; H and W are multiples of the token stride."""

    @abstractmethod
    def layers_above(self, parameter: str) -> int:
        """Return how many layers follow the one that a parameter, by its name in this encoder, belongs to."""

    @abstractmethod
    def token_settings(self) -> dict[str, Any]:
        """Return the settings, as plain values, that the tokens depend on beside the weights."""


class Decoder(nn.Module, ABC):
    """Turn taps and voxels into logits.

    Attributes:
        multiple: Voxels along D, H and W of which the input is a whole multiple.
        deep_strides: Strides of the extra outputs in training.
        features: Channels at full resolution, for the memory estimate.
        input_weight: Name of the weight that reads the image channels, ``(E, C, ...)``; ``None`` if none does.
    """

    multiple: Stride
    deep_strides: tuple[Stride, ...] = ()
    features: int = 32
    input_weight: str | None = None

    @abstractmethod
    def forward(self, x: torch.Tensor, taps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the logits of voxels ``(B, C, D, H, W)``, finest first; outside of training the finest only."""

    def parts(self) -> dict[str, Part]:
        """Return the parts whose cost is reported, inner ones first."""
        return {"decoder": Part([self], ((1, 1, 1), *self.deep_strides))}


class SegmentationNetwork(nn.Module, ABC):
    """A network as training and prediction call it: logits of a volume, in one pass or by ``encode`` and ``decode``.

    Args:
        encoder: Makes the taps; ``None`` for a network without tokens, whose ``encode`` returns no taps.
        halo: Slices that the input has beyond the output on each side.
        deep_strides: Strides of the extra outputs in training.
        features: Channels at full resolution, for the memory estimate.

    Attributes:
        pretrained: Whether the network, or its encoder, started from a file
            (see `volseg.models.build.parameter_groups`).
        start: What it took over from that file, as plain values; ``None`` with random weights.
    """

    encoder: VolumeEncoder | None

    def __init__(
        self,
        *,
        encoder: VolumeEncoder | None = None,
        halo: int = 0,
        deep_strides: tuple[Stride, ...] = (),
        features: int = 32,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.halo = halo
        self.deep_strides = deep_strides
        self.features = features
        self.pretrained = False
        self.start: dict[str, Any] | None = None

    def forward(
        self, x: torch.Tensor, spacing_mm: SpacingMm | None = None, taps: list[torch.Tensor] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Compute the logits of the slices between the halos.

        Args:
            x: ``(B, C, D + 2 halo, H, W)``, any size.
            spacing_mm: Voxel size along D, H and W, ``(3,)`` or ``(B, 3)``; the plan's by default.
            taps: Result of `encode` for ``x``, to run the decoder alone.

        Returns:
            ``(B, K, D, H, W)``; in training a list of it and the logits at each of ``deep_strides``.
        """
        centre = x[:, :, self.halo : x.shape[2] - self.halo]
        return self.decode(self.encode(x) if taps is None else taps, centre, spacing_mm)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the taps of every slice on its own; none without an encoder.

        Args:
            x: ``(B, C, D + 2 halo, H, W)``, any size.

        Returns:
            Taps ``(B, E, D, h, w)``.
        """
        return []

    @abstractmethod
    def decode(
        self, taps: list[torch.Tensor], x: torch.Tensor, spacing_mm: SpacingMm | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Compute logits from taps and the voxels of the same slices, ``x`` ``(B, C, D, H, W)``; see `forward`."""

    def parts(self) -> dict[str, Part]:
        """Return the parts whose cost is reported, inner ones first."""
        return {"network": Part([self], ((1, 1, 1), *self.deep_strides))}

    def cropped(self, levels: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
        """Crop the logits of a padded volume, finest first, to what ``size`` voxels need; in prediction the finest."""
        if not self.training:
            return crop_to(levels[0], size)
        return [crop_to(level, coarse) for level, coarse in zip(levels, self.level_sizes(size), strict=True)]

    def level_sizes(self, size: Sequence[int]) -> list[list[int]]:
        """Return the voxels (D, H, W) of the logits in training, finest first, for an input of ``size`` voxels."""
        strides = [(1, 1, 1), *self.deep_strides]
        return [[-(-length // step) for length, step in zip(size, stride, strict=True)] for stride in strides]


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
