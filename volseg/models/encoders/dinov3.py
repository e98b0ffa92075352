"""DINOv3 vision transformers in plain torch.

Source: Siméoni et al. 2025, "DINOv3", arXiv 2508.10104; sizes, norms and key names follow
github.com/facebookresearch/dinov3 (``hub/backbones.py``, ``layers``); rotary positions: Su et al. 2021, "RoFormer".
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from einops import rearrange
from torch import nn

from volseg.config.encoders import EncoderEntry
from volseg.models.attention import AttentionFunction, AttentionLayer, sdpa
from volseg.models.attention import rotate as rotate_pairs
from volseg.models.contracts import State
from volseg.models.encoders.key_names import KeyNames, own_names
from volseg.models.encoders.layers import Block, Mlp, SwiGlu
from volseg.models.encoders.transformer import VisionTransformer

EPS = 1e-5
QUERY_KEY_VALUE = ("query", "key", "value")
OFFICIAL = KeyNames(
    renamed={"storage_tokens": "register_tokens"},
    joined={"mlp.w12": (("mlp.w1", "mlp.w2"),)},
    ignored=("local_cls_norm.",),  # for the class tokens of local crops in pretraining
)
HUGGING_FACE = KeyNames(
    patch_weight="embeddings.patch_embeddings.weight",
    renamed={
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.register_tokens": "register_tokens",
        "embeddings.patch_embeddings": "patch_embed.proj",
        "model.layer": "blocks",
        "layer": "blocks",
        "attention.q_proj": "attn.query",
        "attention.k_proj": "attn.key",
        "attention.v_proj": "attn.value",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
    },
    joined={"mlp.w12": (("mlp.gate_proj", "mlp.up_proj"),)},
)
"""``models/dinov3_vit`` of huggingface/transformers: files have ``layer``, version 5 has ``model.layer`` in memory."""


class RotaryPosition(nn.Module):
    """Angles that turn the queries and keys of a patch by its place: half of the channels by row, half by column.

    Rows and columns are normalised each, so that the centres of the patches lie between -1 and 1 in images of any
    size. In pretraining the coordinates were scaled at random; volseg never does this, in fine-tuning neither, so
    that the features of training and prediction agree.

    Args:
        head_width: Channels of an attention head, a multiple of 4.
        base: Ratio of the longest to the shortest period.
    """

    periods: torch.Tensor

    def __init__(self, head_width: int, base: float = 100.0) -> None:
        super().__init__()
        self.register_buffer("periods", base ** (torch.arange(0, head_width, 4) / head_width))  # (E / 4,)

    def forward(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of the angles of a token grid, ``(height * width, E)`` each."""
        rows, columns = (self._centres(count) for count in (height, width))
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # (h * w, 2)
        angles = 2 * math.pi * grid[:, :, None] / self.periods  # (h * w, 2, E / 4)
        angles = angles.flatten(1).tile(2)
        return angles.cos(), angles.sin()

    def _centres(self, count: int) -> torch.Tensor:
        return 2 * ((torch.arange(count, device=self.periods.device, dtype=self.periods.dtype) + 0.5) / count) - 1


def rotate(tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn pairs of channels (i, i + E / 2) of the last tokens; the others stay.

    Args:
        tokens: ``(B, heads, N, E)``.
        cos: ``(M, E)``, M at most N.
        sin: ``(M, E)``.

    Returns:
        ``(B, heads, N, E)`` in the precision of ``tokens``; computed in that of the angles.
    """
    first, patches = tokens.tensor_split([tokens.shape[2] - len(cos)], dim=2)
    half = patches.shape[-1] // 2  # both channels of a pair have the same angle
    turned = rotate_pairs(patches, cos[:, :half], sin[:, :half])
    return torch.cat([first, turned.to(tokens.dtype)], dim=2)


class RotaryAttention(AttentionLayer):
    """Multi-head self-attention with rotary positions; keys have no bias."""

    def __init__(self, width: int, heads: int, attend: AttentionFunction) -> None:
        super().__init__(attend)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """``(B, N, E)`` -> ``(B, N, E)``; the angles are those of the last tokens, see `rotate`."""
        query, key, value = (
            rearrange(layer(x), "b n (h e) -> b h n e", h=self.heads) for layer in (self.query, self.key, self.value)
        )
        mixed = self.attend(rotate(query, cos, sin), rotate(key, cos, sin), value)
        return self.proj(rearrange(mixed, "b h n e -> b n (h e)"))  # type: ignore[no-any-return]


class DinoV3(VisionTransformer):
    """A DINOv3 vision transformer.

    Args:
        entry: Its catalogue entry.
        in_channels: Image channels.
        attend: Attention kernel.
        drop_path: Stochastic-depth rate of the last block; it rises linearly from 0.
    """

    attention_layers = ("query", "key", "value", "proj")
    mlp_layers = ("fc1", "fc2", "w12", "w3")
    undecayed = ("cls_token", "register_tokens")

    def __init__(
        self, entry: EncoderEntry, in_channels: int = 3, attend: AttentionFunction = sdpa, drop_path: float = 0.0
    ) -> None:
        width = entry.width

        def block(rate: float) -> Block:
            attention = RotaryAttention(width, entry.heads, attend)
            mlp = SwiGlu(width, 6 * width) if entry.swiglu else Mlp(width, 4 * width)
            return Block(width, attention, mlp, eps=EPS, drop_path=rate)

        super().__init__(entry, in_channels, block, eps=EPS, drop_path=drop_path)
        self.register_tokens = nn.Parameter(torch.zeros(1, entry.registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)  # masks images in pretraining only
        self.rope_embed = RotaryPosition(width // entry.heads)
        self.initialise(self.register_tokens)

    def embed(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the input of the first block: class, register and patch tokens ``(B, 1 + R + h * w, E)``."""
        first = torch.cat([self.cls_token, self.register_tokens], dim=1)
        return torch.cat([first.expand(len(patches), -1, -1), patches], dim=1)

    def block_inputs(self, height: int, width: int) -> tuple[torch.Tensor, ...]:
        """Return cosines and sines of the patches' angles, ``(height * width, E / heads)`` each."""
        return self.rope_embed(height, width)  # type: ignore[no-any-return]

    def official_state(self, state: State) -> dict[str, torch.Tensor]:
        """Return the tensors of a file with official or Hugging Face names under this network's names.

        The fused query, key and value layer is split, and its bias multiplied by its mask, which is 0 for keys. Hugging
        Face's files lack the periods of the rotation; these are then as they were built.
        """
        last = {"mlp.down_proj": "mlp.w3"} if self.entry.swiglu else {}
        hugging_face = replace(HUGGING_FACE, renamed={**HUGGING_FACE.renamed, **last})
        own = _split(own_names(state, (OFFICIAL, hugging_face)))
        if "mask_token" in own:
            own["mask_token"] = own["mask_token"].flatten(0, -2)  # (1, E) or (1, 1, E)
        own.setdefault("rope_embed.periods", self.rope_embed.periods)
        return own


def _split(state: State) -> dict[str, torch.Tensor]:
    """Split the fused layers of queries, keys and values; a bias of the keys remains if no mask removes it."""
    parts = {}
    for key, value in state.items():
        block, fused, kind = key.partition(".attn.qkv.")
        if not fused:
            parts[key] = value
        elif kind != "bias_mask":
            mask = state.get(f"{block}{fused}bias_mask") if kind == "bias" else None
            rows = (value if mask is None else value * mask).chunk(3)
            parts |= {f"{block}.attn.{name}.{kind}": part for name, part in zip(QUERY_KEY_VALUE, rows, strict=True)}
            if mask is not None:
                del parts[f"{block}.attn.key.bias"]
    return parts


def build(entry: EncoderEntry, in_channels: int, *, attend: AttentionFunction, drop_path: float) -> DinoV3:
    """Build the network of a catalogue entry with random weights."""
    return DinoV3(entry, in_channels, attend, drop_path)
