"""From a volume to slice images, and from the tokens of the slices back to a volume."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from volseg.errors import ConfigError
from volseg.models.contracts import FeatureSpec, ImageEncoder, VolumeEncoder


def slice_channels(image_channels: int, adjacent_slices: int) -> int:
    """Return the channels of the slice images made by `gather_slices`."""
    return image_channels * (2 if adjacent_slices > 1 else 1)


def gather_slices(x: torch.Tensor, adjacent_slices: int) -> torch.Tensor:
    """Return every slice, with its neighbours as channels.

    The previous and the next slice share their patch-embedding weights. The embedding is linear, so it can take the sum
    of the two as one channel: a flip along depth then reverses the slices and changes nothing else.

    Args:
        x: ``(B, C, D + 2r, H, W)`` with ``r = (adjacent_slices - 1) // 2``.
        adjacent_slices: 1 or 3.

    Returns:
        ``(B * D, C, H, W)``; with neighbours ``(B * D, 2 C, H, W)``: the slice, then previous + next.
    """
    if adjacent_slices > 1:
        x = torch.cat([x[:, :, 1:-1], x[:, :, :-2] + x[:, :, 2:]], dim=1)
    return rearrange(x, "b c d h w -> (b d) c h w")


def resize_slices(images: torch.Tensor, token_stride: int, patch: int) -> torch.Tensor:
    """Scale by ``patch / token_stride``, so that one patch covers ``token_stride`` x ``token_stride`` voxels exactly.

    Args:
        images: ``(N, C, H, W)``; H and W are multiples of the token stride.
        token_stride: Voxels per token.
        patch: Pixels per token.
    """
    size = [side // token_stride * patch for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def tap_indices(depth: int, count: int = 4) -> tuple[int, ...]:
    """Return evenly spaced layers, the last included: 4 taps of 12 layers are (2, 5, 8, 11); at most all."""
    return tuple(sorted({-(-(index + 1) * depth // count) - 1 for index in range(count)}))


class SliceEncoder(VolumeEncoder):
    """Encode every slice of a volume with a 2D network.

    Args:
        vit: The 2D network, with as many input channels as `slice_channels` returns. The attribute keeps the name of
            the first such network, because it is part of the keys in model files.
        token_stride: Voxels per token in plane.
        adjacent_slices: Slices that enter as channels (1 or 3).
        taps: Number of layers that are tapped, evenly spaced, the last included; at most one per layer.
    """

    def __init__(self, vit: ImageEncoder, token_stride: int, adjacent_slices: int, taps: int = 4) -> None:
        super().__init__()
        self.vit = vit
        self.patch = vit.patch
        self.undecayed = vit.undecayed
        self.token_stride = token_stride
        self.adjacent_slices = adjacent_slices
        self.frozen = False
        self.tap_indices = tap_indices(len(vit.layers), taps)
        shapes = vit.tap_shapes(self.tap_indices)
        if any(token_stride * pixels % self.patch for pixels, _ in shapes):
            raise ConfigError(
                "the finest tap of the encoder would be finer than a voxel",
                found=f"{shapes[0][0]} of {self.patch} pixels of a token that covers {token_stride} voxels",
                hint="set a larger plan.token_stride or a smaller model.encoder_scale",
            )
        strides = [token_stride * pixels // self.patch for pixels, _ in shapes]
        self.spec = FeatureSpec(tuple(width for _, width in shapes), tuple((1, stride, stride) for stride in strides))

    def train(self, mode: bool = True) -> SliceEncoder:
        """Set training mode; a frozen encoder stays in evaluation mode (no stochastic depth)."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """``(B, C, D + 2r, H, W)`` -> taps ``(B, E, D, h, w)``; H and W are multiples of the token stride."""
        height, width = x.shape[-2:]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            slices = gather_slices(x, self.adjacent_slices)  # (B * D, C', H, W)
            size = self._chunk_size(slices, height * width // self.token_stride**2)
            chunks = [self._encode(chunk) for chunk in torch.split(slices, size)]
            taps = [torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*chunks, strict=True)]
        return [
            rearrange(tap, "(b d) (h w) e -> b e d h w", b=len(x), h=height // stride, w=width // stride)
            for tap, (_, stride, _) in zip(taps, self.spec.strides, strict=True)
        ]

    @torch.no_grad()
    def class_and_patch_tokens(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Compute the class tokens and the last tap, without a graph.

        Args:
            x: ``(B, C, D + 2r, H, W)``; H and W are multiples of the token stride.

        Returns:
            ``(B, D, E)``, ``None`` in a network without class tokens, and ``(B, E, D, h, w)``.
        """
        stride = self.token_stride
        images = resize_slices(gather_slices(x, self.adjacent_slices), stride, self.patch)
        classes, tokens = self.vit.class_and_patch_tokens(images)
        size = {"b": len(x), "h": x.shape[-2] // stride, "w": x.shape[-1] // stride}
        patches = rearrange(tokens, "(b d) (h w) e -> b e d h w", **size)
        return None if classes is None else rearrange(classes, "(b d) e -> b d e", b=len(x)), patches

    def layers_above(self, parameter: str) -> int:
        """Return how many layers follow the one that a parameter, by its name in this encoder, belongs to."""
        return self.vit.layers_above(parameter.removeprefix("vit."))

    def token_settings(self) -> dict[str, Any]:
        """Return the settings that the tokens depend on beside the weights."""
        return {
            "taps": list(self.tap_indices),
            "adjacent_slices": self.adjacent_slices,
            "token_stride": self.token_stride,
        }

    def _encode(self, slices: torch.Tensor) -> list[torch.Tensor]:
        return self.vit.taps(resize_slices(slices, self.token_stride, self.patch), self.tap_indices)

    def _chunk_size(self, slices: torch.Tensor, tokens: int) -> int:
        """Return how many slices are encoded at once; all of them where their activations are kept anyway."""
        if torch.is_grad_enabled() and not self.vit.checkpoint_layers:
            return len(slices)
        return max(1, self.vit.chunk_pixels // (tokens * self.patch**2))
