"""A frozen encoder as the token cache needs it, and the form of stored tokens."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from volseg.errors import ConfigError
from volseg.inference.sliding.windows import OVERLAP, window_starts
from volseg.models.contracts import SegmentationNetwork, VolumeEncoder
from volseg.planning.plan import Plan
from volseg.preprocessing.cache import digest

logger = logging.getLogger(__name__)

TapShape = tuple[int, int, int]
"""Rows, columns and channels of a tap of one slice."""


class FrozenEncoder:
    """The frozen encoder of a network, as `volseg.data.tokens.SliceTokens` describes it.

    It runs in float32 at every precision of training, so that one cache serves them all. Of the control without an
    encoder, tokens have no channels: it trains on the same stored volumes.

    Args:
        model: The network; its encoder is frozen, or ``None``.
        plan: The plan, whose patch size is the window.
        name: Value of ``model.encoder``.

    Attributes:
        key: Hash of the weights, the encoder's settings and the windows.
        window: The plan's patch (D, H, W).
        halo: Neighbouring slices on each side.
        slice_shape: (F,), the floats of all taps of one slice of a window.
    """

    def __init__(self, model: SegmentationNetwork, plan: Plan, name: str) -> None:
        encoder = model.encoder
        own = {} if encoder is None else {"weights": weights_hash(encoder), **encoder.token_settings()}
        assert encoder is None or not any(parameter.requires_grad for parameter in encoder.parameters())
        self._model = model
        _, height, width = self.window = plan.patch_size
        self.halo = model.halo
        self.slice_shape = (sum(map(math.prod, tap_shapes(encoder, height, width))),)
        self.key = digest({"encoder": name, **own, "window": list(self.window), "overlap": OVERLAP})

    def windows(self, shape: Sequence[int]) -> NDArray[np.int32]:
        """Return the first row and column (N, 2) of the in-plane windows of a padded volume (D, H, W)."""
        rows, columns = (window_starts(shape[axis], self.window[axis]) for axis in (1, 2))
        return np.array([(row, column) for row in rows for column in columns], dtype=np.int32)

    def encode(self, stack: NDArray[np.float32]) -> NDArray[np.float16]:
        """Encode the slices of one window: (C, D + 2 halo, H, W) -> tokens (D, F).

        Raises:
            ConfigError: A token does not fit half precision.
        """
        if self._model.encoder is None:
            return np.empty((len(stack[0]) - 2 * self.halo, 0), np.float16)
        device = next(self._model.parameters()).device
        with torch.no_grad():
            tokens = pack_taps(self._model.encode(torch.from_numpy(stack)[None].to(device)))[0]
        if not torch.isfinite(tokens).all():
            raise ConfigError(
                "the encoder's tokens do not fit half precision",
                expected="finite values of at most 65504",
                hint="check model.weights, or set data.cache_tokens=false",
            )
        return cast("NDArray[np.float16]", tokens.cpu().numpy())


def tap_shapes(encoder: VolumeEncoder | None, height: int, width: int) -> list[TapShape]:
    """Return rows, columns and channels of each tap of one slice of H x W voxels; none without an encoder."""
    if encoder is None:
        return []
    spec = zip(encoder.spec.channels, encoder.spec.strides, strict=True)
    return [(height // rows, width // columns, channels) for channels, (_, rows, columns) in spec]


def pack_taps(taps: Sequence[Tensor]) -> Tensor:
    """Pack taps (B, E, D, h, w), each of its own size, into (B, D, F) float16: of a slice tap by tap, channels last."""
    return torch.cat([rearrange(tap.half(), "b e d h w -> b d (h w e)") for tap in taps], dim=2)


def unpack_taps(tokens: Tensor, shapes: Sequence[TapShape]) -> list[Tensor]:
    """Unpack (B, D, F) float16 into taps (B, E, D, h, w) float32 each, channels last as from the encoder."""
    pieces = torch.split(tokens.float(), [math.prod(shape) for shape in shapes], dim=2)
    return [
        rearrange(piece, "b d (h w e) -> b e d h w", h=height, w=width)
        for piece, (height, width, _) in zip(pieces, shapes, strict=True)
    ]


def training_inputs(batch: dict[str, Any], encoder: VolumeEncoder | None, device: torch.device) -> dict[str, Any]:
    """Return the network's further inputs: the taps, if the batch has tokens."""
    if "tokens" not in batch or encoder is None:
        return {}
    tokens = batch["tokens"].to(device, non_blocking=True)
    return {"taps": unpack_taps(tokens, tap_shapes(encoder, *batch["image"].shape[-2:]))}


def weights_hash(encoder: nn.Module) -> str:
    """Return the SHA-256 of names, shapes and values of an encoder's weights."""
    found = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
