"""DINOv2 vision transformers in plain torch, with the official state-dict keys.

Source: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision"; registers: Darcet et al. 2023,
"Vision Transformers Need Registers". Key names and the resizing of the position embedding follow
github.com/facebookresearch/dinov2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from volseg.errors import ConfigError
from volseg.models.attention import AttentionFunction, sdpa
from volseg.models.encoders.layers import PATCH, Block, PatchEmbed


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The numbers of one member of the family.

    Attributes:
        width: Embedding size E.
        depth: Transformer blocks.
        heads: Attention heads.
        swiglu: SwiGLU instead of a GELU MLP.
        registers: Register tokens beside the class token. With registers the position embedding is resized to the
            exact size with antialiasing, without them by a scale with an offset of 0.1, as each family was trained.
        grid: Side of the position embedding's native grid, in tokens.
    """

    width: int
    depth: int
    heads: int
    swiglu: bool = False
    registers: int = 0
    grid: int = 37


_BASE = {
    "dinov2_s14": Variant(width=384, depth=12, heads=6),
    "dinov2_b14": Variant(width=768, depth=12, heads=12),
    "dinov2_l14": Variant(width=1024, depth=24, heads=16),
    "dinov2_g14": Variant(width=1536, depth=40, heads=24, swiglu=True),
}
VARIANTS: dict[str, Variant] = {
    **_BASE,
    **{f"{name}_reg": replace(variant, registers=4) for name, variant in _BASE.items()},
    "tiny": Variant(width=192, depth=4, heads=3, grid=16),
}


class DinoV2(nn.Module):
    """A DINOv2 vision transformer.

    Args:
        variant: Its numbers.
        in_channels: Image channels.
        attend: Attention kernel.
        drop_path: Stochastic-depth rate of the last block; it rises linearly from 0.

    Attributes:
        checkpoint_blocks: Keep the input of each block only and run the block again for its gradient.
    """

    def __init__(
        self, variant: Variant, in_channels: int = 3, attend: AttentionFunction = sdpa, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.variant = variant
        self.checkpoint_blocks = False
        width, depth = variant.width, variant.depth
        self.patch_embed = PatchEmbed(in_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + variant.grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, variant.registers, width)) if variant.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)  # masks images in pretraining only
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, variant.heads, swiglu=variant.swiglu, attend=attend, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._resized_position: tuple[tuple[object, ...], torch.Tensor] | None = None
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def position(self, height: int, width: int) -> torch.Tensor:
        """Position embedding of a ``height`` x ``width`` token grid, class position first: ``(1, 1 + h * w, E)``.

        Kept from call to call while no gradient is asked for and the parameter does not change. Changes through
        ``pos_embed.data`` are not noticed, as autograd does not notice them; copy under ``torch.no_grad`` instead.
        """
        learns = torch.is_grad_enabled() and self.pos_embed.requires_grad
        if learns or self.pos_embed.is_inference():  # which counts no changes
            return resize_position(self.pos_embed, height, width, exact=self.register_tokens is not None)
        parameter = self.pos_embed
        state = (height, width, parameter.device, parameter.dtype, parameter.data_ptr(), parameter._version)
        if self._resized_position is None or self._resized_position[0] != state:
            resized = resize_position(parameter.detach(), height, width, exact=self.register_tokens is not None)
            self._resized_position = (state, resized)
        return self._resized_position[1]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens that enter the first block: class, registers, patches ``(B, 1 + R + h * w, E)``."""
        height, width = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        patches = self.patch_embed(images)  # (B, h * w, E)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = tokens + self.position(height, width).to(tokens.dtype)
        if self.register_tokens is None:
            return tokens
        return torch.cat([tokens[:, :1], self.register_tokens.expand(len(tokens), -1, -1), tokens[:, 1:]], dim=1)

    def taps(self, images: torch.Tensor, indices: Sequence[int]) -> list[torch.Tensor]:
        """Patch tokens after the blocks ``indices``, each through the final norm.

        Args:
            images: ``(B, C, H, W)``; H and W are multiples of 14.
            indices: Block numbers, rising; no block after the last of them is run.

        Returns:
            For each index ``(B, h * w, E)``, without class and register tokens.

        Raises:
            ValueError: H or W is not a multiple of 14.
        """
        if images.shape[-2] % PATCH or images.shape[-1] % PATCH:
            raise ValueError(f"image of {tuple(images.shape[-2:])} pixels: both sides must be multiples of {PATCH}")
        tokens, kept = self.embed(images), []
        for index, block in enumerate(self.blocks[: indices[-1] + 1]):
            if self.checkpoint_blocks and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if index in indices:
                kept.append(self.norm(tokens[:, 1 + self.variant.registers :]))
        return kept

    def patch_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` -> ``(B, h * w, E)``: last block, normalised, no class or register tokens."""
        return self.taps(images, [len(self.blocks) - 1])[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The same as `patch_tokens`."""
        return self.patch_tokens(images)


def resize_position(pos_embed: torch.Tensor, height: int, width: int, *, exact: bool) -> torch.Tensor:
    """Resize a square position embedding to ``height`` x ``width`` tokens as the official code does.

    Args:
        pos_embed: ``(1, 1 + M * M, E)``, class position first.
        height: Token rows.
        width: Token columns.
        exact: The rule of the register models (to the exact size, antialiased) instead of the base models' (scale
            factor ``(size + 0.1) / M``, which shifts the samples slightly; not antialiased).

    Returns:
        ``(1, 1 + height * width, E)`` in the dtype of ``pos_embed``; the interpolation runs in float32.

    Source: ``interpolate_pos_encoding`` in facebookresearch/dinov2, ``vision_transformer.py``.
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if height * width == side * side and height == width:
        return pos_embed
    native = rearrange(pos_embed[:, 1:].float(), "one (h w) e -> one e h w", h=side)
    if exact:
        resized = F.interpolate(native, size=(height, width), mode="bicubic", antialias=True)
    else:
        scale = ((height + 0.1) / side, (width + 0.1) / side)
        resized = F.interpolate(native, scale_factor=scale, mode="bicubic", antialias=False)
    patches = rearrange(resized, "one e h w -> one (h w) e").to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], patches], dim=1)


def build_dinov2(
    name: str, in_channels: int = 3, *, attend: AttentionFunction = sdpa, drop_path: float = 0.0
) -> DinoV2:
    """Build a member of the family with random weights.

    Args:
        name: ``dinov2_s14 | dinov2_b14 | dinov2_l14 | dinov2_g14``, each also with ``_reg``; ``tiny``. The prefix may
            also be written as in the official file names (``dinov2_vits14_reg4``).
        in_channels: Image channels; 3 is the official form, whose state dict loads strictly.
        attend: Attention kernel.
        drop_path: Stochastic-depth rate of the last block.

    Raises:
        ConfigError: There is no such model.
    """
    key = name.replace("vit", "").replace("reg4", "reg")
    if key not in VARIANTS:
        raise ConfigError("no such DINOv2 model", found=name, expected=", ".join(VARIANTS))
    return DinoV2(VARIANTS[key], in_channels, attend, drop_path)


def tap_indices(depth: int, count: int = 4) -> tuple[int, ...]:
    """Evenly spaced blocks, the last included: 12 blocks, 4 taps -> (2, 5, 8, 11). Fewer blocks give fewer taps."""
    return tuple(sorted({-(-(index + 1) * depth // count) - 1 for index in range(count)}))
