"""A frozen slice encoder: of a trained model, or of a configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from volseg.config.encoders import CATALOGUE
from volseg.config.schema import Config
from volseg.device import choose_device, full_float32
from volseg.errors import ConfigError, ModelFileError
from volseg.models.build import build_slice_encoder, check_attention
from volseg.models.contracts import SegmentationNetwork, pad_to_multiple
from volseg.models.encoders.slices import SliceEncoder
from volseg.models.encoders.weights import load_encoder
from volseg.models.start import is_volseg_model, weight_file

if TYPE_CHECKING:
    from volseg.probing.scans import ScanSlices


@dataclass(frozen=True)
class SliceTokens:
    """Tokens of a slice.

    Attributes:
        class_token: ``(E,)``; ``None`` in a network without one.
        patches: ``(E, h, w)``, the last tap.
    """

    class_token: NDArray[Any] | None
    patches: NDArray[Any]


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """A slice encoder in evaluation mode, without a graph, in float32.

    Attributes:
        slices: The network.
        device: Where it runs.
        record: Its origin and settings, as plain values.
    """

    slices: SliceEncoder
    device: torch.device
    record: dict[str, Any]

    @full_float32()
    def tokens(self, scan: ScanSlices, indices: list[int]) -> list[SliceTokens]:
        """Encode some slices of a scan; rows and columns are padded to whole tokens by repeating the last."""
        halo, stride = (self.slices.adjacent_slices - 1) // 2, self.slices.token_stride
        result = []
        batch = self._batch(scan.image.shape[1:])
        for first in range(0, len(indices), batch):
            stacks = torch.cat([scan.stack(index, halo) for index in indices[first : first + batch]])
            padded = pad_to_multiple(stacks.to(self.device), (1, stride, stride))
            classes, patches = self.slices.class_and_patch_tokens(padded)
            result += [
                SliceTokens(None if classes is None else _array(classes[number, 0]), _array(patches[number, :, 0]))
                for number in range(len(stacks))
            ]
        return result

    def _batch(self, shape: Sequence[int]) -> int:
        """Return how many slices of ``shape`` (H, W) are encoded together, which bounds the memory."""
        tokens = math.prod(-(-side // self.slices.token_stride) for side in shape)
        return max(1, self.slices.vit.chunk_pixels // (tokens * self.slices.patch**2))


def encoder_of_model(network: SegmentationNetwork, file: Path, device: torch.device) -> FrozenEncoder:
    """Return the encoder of a trained network.

    Raises:
        ModelFileError: It has none.
    """
    encoder = network.encoder
    if not isinstance(encoder, SliceEncoder):
        hint = "give a model with an encoder, or --config and model.encoder=... model.weights=..."
        raise ModelFileError("the model has no slice encoder", file=file, hint=hint)
    return _frozen(encoder, device, {"model": str(file)})


def encoder_of_config(config: Config, image_channels: int) -> FrozenEncoder:
    """Build the encoder of a configuration and load its weights.

    Args:
        config: The configuration; ``seed`` draws random weights. A token covers the pixels that ``model.encoder_scale``
            gives, or ``pretrain.token_stride``.
        image_channels: Channels of the scans.

    Raises:
        ConfigError: There is no encoder, no weights are set, ``model.encoder_scale`` does not fit the patch, or the
            attention kernel does not run on the device.
        ModelFileError: The weight file does not exist or does not fit.
    """
    model = config.model
    if model.baseline is not None or model.encoder == "identity":
        name = f"model.baseline={model.baseline}" if model.baseline is not None else "model.encoder=identity"
        raise ConfigError("the configuration has no encoder", found=name, expected=", ".join(CATALOGUE))
    device = choose_device(config.device)
    check_attention(model, device, torch.float32)
    start = weight_file(model)
    if start is not None and is_volseg_model(start):
        hint = f"give it by --model {start}, which also takes its preprocessing"
        raise ConfigError("model.weights is a trained model", found=start, expected="weights of an encoder", hint=hint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_slice_encoder(model, image_channels, _stride(config), 1)
    if start is not None:
        load_encoder(encoder, start, image_channels)
    settings = {"encoder": model.encoder, "weights": model.weights, "seed": config.seed}
    return _frozen(encoder, device, settings)


def _stride(config: Config) -> int:
    """Return the pixels of a slice that a token covers."""
    scale, patch = config.model.encoder_scale, CATALOGUE[config.model.encoder].patch
    if scale is None:
        return config.pretrain.token_stride
    stride = round(patch / scale)
    if stride < 1 or abs(stride * scale - patch) > 1e-6 * patch:
        found, expected = f"{patch} pixels per token / {scale:g}", "a whole number of voxels per token"
        raise ConfigError("model.encoder_scale does not fit the encoder", found=found, expected=expected)
    return stride


def _frozen(encoder: SliceEncoder, device: torch.device, origin: dict[str, Any]) -> FrozenEncoder:
    encoder.requires_grad_(False)
    settings = {"pixels_per_token": encoder.token_stride, "adjacent_slices": encoder.adjacent_slices}
    return FrozenEncoder(encoder.to(device).eval(), device, {**origin, **settings})


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.float().cpu().numpy()
