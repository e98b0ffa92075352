"""What the vision transformers share: tokens, blocks and taps; resizing of learned positions."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from volseg.config.encoders import EncoderEntry
from volseg.models.contracts import ImageEncoder
from volseg.models.encoders.key_names import PATCH_WEIGHT
from volseg.models.encoders.layers import PatchEmbed


class VisionTransformer(ImageEncoder):
    """A class token, perhaps more tokens, and the patches of an image in a row of equal blocks.

    A subclass adds positions to the tokens in `embed`, or gives them to every block in `block_inputs`.

    Args:
        entry: Its catalogue entry.
        in_channels: Image channels.
        make_block: Makes a block from its stochastic-depth rate.
        eps: Epsilon of the final norm.
        drop_path: Stochastic-depth rate of the last block; it rises linearly from 0.
        patch_bias: Whether the patch embedding has a bias.

    Attributes:
        mask_token: What stands for hidden patches in pretraining, ``(1, E)``; ``None`` if the network has none.
    """

    input_weight = PATCH_WEIGHT

    def __init__(
        self,
        entry: EncoderEntry,
        in_channels: int,
        make_block: Callable[[float], nn.Module],
        *,
        eps: float,
        drop_path: float,
        patch_bias: bool = True,
    ) -> None:
        super().__init__(entry.patch, entry.width)
        self.entry = entry
        self.patch_embed = PatchEmbed(in_channels, entry.width, entry.patch, bias=patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, entry.width))
        self.mask_token: nn.Parameter | None = None
        rates = [drop_path * index / max(1, entry.depth - 1) for index in range(entry.depth)]
        self.blocks = nn.ModuleList(make_block(rate) for rate in rates)
        self.norm = nn.LayerNorm(entry.width, eps=eps)

    def initialise(self, *tokens: nn.Parameter) -> None:
        """Draw the weights of the class token, of further tokens and of the linear layers."""
        for token in (self.cls_token, *tokens):
            nn.init.normal_(token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
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

    @abstractmethod
    def embed(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the input of the first block, ``(B, 1 + R + h * w, E)``, the patches ``(B, h * w, E)`` last."""

    def block_inputs(self, height: int, width: int) -> tuple[torch.Tensor, ...]:
        """Return what every block gets beside its tokens, for a grid of ``height`` x ``width`` tokens."""
        return ()

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
        height, width = self._grid(images)
        outputs = self._run(self.patch_embed(images), height, width)
        return [
            self.norm(tokens[:, -height * width :])
            for index, tokens in zip(range(indices[-1] + 1), outputs, strict=False)
            if index in indices
        ]

    def class_and_patch_tokens(
        self, images: torch.Tensor, masked: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the class token and the patch tokens after the last block and the final norm.

        Args:
            images: ``(B, C, H, W)``; H and W are multiples of the patch size.
            masked: ``(B, h * w)``: where the mask token stands in place of the patch, before positions are added.

        Returns:
            ``(B, E)`` and ``(B, h * w, E)``.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        height, width = self._grid(images)
        patches = self.patch_embed(images)
        if masked is not None:
            assert self.mask_token is not None  # callers choose such an encoder
            patches = torch.where(masked[..., None], self.mask_token.to(patches.dtype), patches)
        for tokens in self._run(patches, height, width):  # noqa: B007
            pass
        tokens = self.norm(tokens)
        return tokens[:, 0], tokens[:, -height * width :]

    def _run(self, patches: torch.Tensor, height: int, width: int) -> Iterator[torch.Tensor]:
        """Yield the tokens after each block; no block is run before its tokens are asked for."""
        more, tokens = self.block_inputs(height, width), self.embed(patches, height, width)
        for block in self.blocks:
            tokens = self.run_layer(block, tokens, *more)
            yield tokens

    def _grid(self, images: torch.Tensor) -> tuple[int, int]:
        """Return token rows and columns."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"image of {(height, width)} pixels: both sides must be multiples of {self.patch}")
        return height // self.patch, width // self.patch

    def patch_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Return the patch tokens after the last block and the final norm: ``(B, C, H, W)`` -> ``(B, h * w, E)``."""
        return self.taps(images, [len(self.blocks) - 1])[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return `patch_tokens`."""
        return self.patch_tokens(images)


class PositionCache:
    """Resize a learned position embedding to a token grid, and keep the last result while the parameter is the same.

    Without gradients the result is cached until the parameter changes. Like autograd, the cache does not detect changes
    through ``parameter.data``; copy under ``torch.no_grad`` instead.

    Args:
        resize: ``(parameter, height, width)`` -> the embedding of ``height`` x ``width`` tokens.
    """

    def __init__(self, resize: Callable[[torch.Tensor, int, int], torch.Tensor]) -> None:
        self.resize = resize
        self.last: tuple[tuple[object, ...], torch.Tensor] | None = None

    def __call__(self, parameter: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the embedding of a token grid, class position first: ``(1, 1 + height * width, E)``."""
        trains = torch.is_grad_enabled() and parameter.requires_grad
        if trains or parameter.is_inference():  # inference tensors have no version counter
            return self.resize(parameter, height, width)
        state = (height, width, parameter.device, parameter.dtype, parameter.data_ptr(), parameter._version)
        if self.last is None or self.last[0] != state:
            self.last = (state, self.resize(parameter.detach(), height, width))
        return self.last[1]


def resize_position(
    pos_embed: torch.Tensor, height: int, width: int, *, antialias: bool = False, offset: float = 0.0
) -> torch.Tensor:
    """Resize a square position embedding to ``height`` x ``width`` tokens, bicubically.

    Args:
        pos_embed: ``(1, 1 + M * M, E)``, class position first.
        height: Token rows.
        width: Token columns.
        antialias: Whether the kernel is widened where the grid shrinks.
        offset: Added to both sides in the scale factor, ``(side + offset) / M``, which shifts the samples slightly; 0
            scales to the exact size.

    Returns:
        ``(1, 1 + height * width, E)`` in the dtype of ``pos_embed``; the interpolation runs in float32 at least.
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if height * width == side * side and height == width:
        return pos_embed
    precision = torch.promote_types(pos_embed.dtype, torch.float32)
    native = rearrange(pos_embed[:, 1:].to(precision), "one (h w) e -> one e h w", h=side)
    if offset:
        scale = ((height + offset) / side, (width + offset) / side)
        resized = F.interpolate(native, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        resized = F.interpolate(native, size=(height, width), mode="bicubic", antialias=antialias)
    patches = rearrange(resized, "one e h w -> one (h w) e").to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], patches], dim=1)
