"""DINOv2 vision transformers in plain torch, with the official state-dict keys.

Source: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision"; registers: Darcet et al. 2023,
"Vision Transformers Need Registers". Key names and the resizing of the position embedding follow
github.com/facebookresearch/dinov2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.errors import ConfigError
from volseg.models.attention import AttentionFunction, sdpa
from volseg.models.contracts import ImageEncoder, State
from volseg.models.encoders.key_names import PATCH_WEIGHT, official_names
from volseg.models.encoders.layers import Block, PatchEmbed


class DinoV2(ImageEncoder):
    """A DINOv2 vision transformer.

    The models with registers resize the position embedding to the exact size with antialiasing, the models without by a
    scale with an offset of 0.1; both as trained.

    Args:
        entry: Its catalogue entry.
        in_channels: Image channels.
        attend: Attention kernel.
        drop_path: Stochastic-depth rate of the last block; it rises linearly from 0.
    """

    input_weight = PATCH_WEIGHT
    attention_layers = ("qkv", "proj")
    mlp_layers = ("fc1", "fc2", "w12", "w3")
    undecayed = ("pos_embed", "cls_token", "register_tokens")

    def __init__(
        self, entry: EncoderEntry, in_channels: int = 3, attend: AttentionFunction = sdpa, drop_path: float = 0.0
    ) -> None:
        super().__init__(entry.patch, entry.width)
        self.entry = entry
        width, depth = entry.width, entry.depth
        self.patch_embed = PatchEmbed(in_channels, width, entry.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + entry.grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, entry.registers, width)) if entry.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)  # masks images in pretraining only
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, entry.heads, swiglu=entry.swiglu, attend=attend, drop_path=rate) for rate in rates
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

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Return the transformer blocks."""
        return list(self.blocks)

    def layers_above(self, parameter: str) -> int:
        """Return how many layers follow a parameter's: patch embedding, blocks, final norm."""
        block = re.match(r"blocks\.(\d+)\.", parameter)
        if block:
            return len(self.blocks) - int(block[1])
        return 0 if parameter.startswith("norm.") else len(self.blocks) + 1

    def official_state(self, state: State) -> dict[str, torch.Tensor]:
        """Return a weight file's tensors under the official names; see `official_names`."""
        return official_names(state)

    def position(self, height: int, width: int) -> torch.Tensor:
        """Return the position embedding of a token grid, class position first: ``(1, 1 + height * width, E)``.

        Without gradients the result is cached until the parameter changes. Like autograd, the cache does not detect
        changes through ``pos_embed.data``; copy under ``torch.no_grad`` instead.
        """
        trains = torch.is_grad_enabled() and self.pos_embed.requires_grad
        if trains or self.pos_embed.is_inference():  # inference tensors have no version counter
            return resize_position(self.pos_embed, height, width, exact=self.register_tokens is not None)
        parameter = self.pos_embed
        state = (height, width, parameter.device, parameter.dtype, parameter.data_ptr(), parameter._version)
        if self._resized_position is None or self._resized_position[0] != state:
            resized = resize_position(parameter.detach(), height, width, exact=self.register_tokens is not None)
            self._resized_position = (state, resized)
        return self._resized_position[1]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input of the first block: class, register and patch tokens ``(B, 1 + R + h * w, E)``."""
        height, width = (side // self.patch for side in images.shape[-2:])
        patches = self.patch_embed(images)  # (B, h * w, E)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = tokens + self.position(height, width).to(tokens.dtype)
        if self.register_tokens is None:
            return tokens
        return torch.cat([tokens[:, :1], self.register_tokens.expand(len(tokens), -1, -1), tokens[:, 1:]], dim=1)

    def taps(self, images: torch.Tensor, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return the patch tokens after some blocks, each through the final norm.

        Args:
            images: ``(B, C, H, W)``; H and W are multiples of the patch size.
            indices: Ascending numbers of blocks; no block after the last of them is run.

        Returns:
            For each index ``(B, h * w, E)``, without class and register tokens.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        if any(side % self.patch for side in images.shape[-2:]):
            raise ValueError(
                f"image of {tuple(images.shape[-2:])} pixels: both sides must be multiples of {self.patch}"
            )
        tokens, taps = self.embed(images), []
        for index, block in enumerate(self.blocks[: indices[-1] + 1]):
            tokens = self.run_layer(block, tokens)
            if index in indices:
                taps.append(self.norm(tokens[:, 1 + self.entry.registers :]))
        return taps

    def patch_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Return the patch tokens after the last block and the final norm: ``(B, C, H, W)`` -> ``(B, h * w, E)``."""
        return self.taps(images, [len(self.blocks) - 1])[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return `patch_tokens`."""
        return self.patch_tokens(images)


def resize_position(pos_embed: torch.Tensor, height: int, width: int, *, exact: bool) -> torch.Tensor:
    """Resize a square position embedding to ``height`` x ``width`` tokens as the official code does.

    Args:
        pos_embed: ``(1, 1 + M * M, E)``, class position first.
        height: Token rows.
        width: Token columns.
        exact: Rule of the models with registers (exact size, antialiased) instead of those without (scale factor
            ``(size + 0.1) / M``, which shifts the samples slightly; not antialiased).

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


def build(entry: EncoderEntry, in_channels: int, *, attend: AttentionFunction, drop_path: float) -> DinoV2:
    """Build the network of a catalogue entry with random weights."""
    return DinoV2(entry, in_channels, attend, drop_path)


def build_dinov2(
    name: str, in_channels: int = 3, *, attend: AttentionFunction = sdpa, drop_path: float = 0.0
) -> DinoV2:
    """Build a DINOv2 model of the catalogue with random weights.

    Args:
        name: ``dinov2_s14``, ``dinov2_b14_reg``, ... or as in the official file names (``dinov2_vits14_reg4``).
        in_channels: Image channels; 3 is the official form, whose state dict loads strictly.
        attend: Attention kernel.
        drop_path: Stochastic-depth rate of the last block.

    Raises:
        ConfigError: There is no such model.
    """
    models = {key: entry for key, entry in CATALOGUE.items() if entry.module == __name__}
    key = name.replace("vit", "").replace("reg4", "reg")
    if key not in models:
        raise ConfigError("no such DINOv2 model", found=name, expected=", ".join(models))
    return build(models[key], in_channels, attend=attend, drop_path=drop_path)
