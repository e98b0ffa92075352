"""DINOv2 vision transformers in plain torch, with the official state-dict keys.

Source: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision"; registers: Darcet et al. 2023,
"Vision Transformers Need Registers". Key names and the resizing of the position embedding
(``interpolate_pos_encoding``) follow github.com/facebookresearch/dinov2.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.errors import ConfigError
from volseg.models.attention import AttentionFunction, sdpa
from volseg.models.contracts import State
from volseg.models.encoders.key_names import KeyNames, own_names
from volseg.models.encoders.layers import Attention, Block, Mlp, SwiGlu
from volseg.models.encoders.transformer import PositionCache, VisionTransformer, resize_position

EPS = 1e-6
OFFICIAL = KeyNames()
"""Hub checkpoints, and training checkpoints with the prefix ``teacher.backbone.`` and blocks in chunks."""
HUGGING_FACE = KeyNames(
    patch_weight="embeddings.patch_embeddings.projection.weight",
    renamed={
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.register_tokens": "register_tokens",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "layernorm": "norm",
        "attention.output.dense": "attn.proj",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.weights_in": "mlp.w12",
        "mlp.weights_out": "mlp.w3",
        "mlp.down_proj": "mlp.w3",
    },
    joined={
        "attn.qkv": (
            ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
            ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        ),
        "mlp.w12": (("mlp.gate_proj", "mlp.up_proj"),),
    },
)
"""``models/dinov2`` and ``models/dinov2_with_registers`` of huggingface/transformers: files of version 4 and 5 have the
first of two names, version 5 has the second ones in memory."""


class DinoV2(VisionTransformer):
    """A DINOv2 vision transformer.

    The models with registers resize the position embedding to the exact size with antialiasing, the models without by a
    scale with an offset of 0.1; both as trained.

    Args:
        entry: Its catalogue entry.
        in_channels: Image channels.
        attend: Attention kernel.
        drop_path: Stochastic-depth rate of the last block; it rises linearly from 0.
    """

    attention_layers = ("qkv", "proj")
    mlp_layers = ("fc1", "fc2", "w12", "w3")
    undecayed = ("pos_embed", "cls_token", "register_tokens")

    def __init__(
        self, entry: EncoderEntry, in_channels: int = 3, attend: AttentionFunction = sdpa, drop_path: float = 0.0
    ) -> None:
        width = entry.width

        def block(rate: float) -> Block:
            attention = Attention(width, entry.heads, attend)
            mlp = (SwiGlu if entry.swiglu else Mlp)(width, 4 * width)
            return Block(width, attention, mlp, eps=EPS, drop_path=rate)

        super().__init__(entry, in_channels, block, eps=EPS, drop_path=drop_path)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + entry.grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, entry.registers, width)) if entry.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)  # masks images in pretraining only
        rule = {"antialias": True} if entry.registers else {"offset": 0.1}
        self._position = PositionCache(partial(resize_position, **rule))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.initialise(*([self.register_tokens] if self.register_tokens is not None else []))

    def official_state(self, state: State) -> dict[str, torch.Tensor]:
        """Return a weight file's tensors under the official names; see `official_names`."""
        return official_names(state)

    def position(self, height: int, width: int) -> torch.Tensor:
        """Return the position embedding of a token grid, class position first: ``(1, 1 + height * width, E)``."""
        return self._position(self.pos_embed, height, width)

    def embed(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the input of the first block: class, register and patch tokens ``(B, 1 + R + h * w, E)``."""
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = tokens + self.position(height, width).to(tokens.dtype)
        if self.register_tokens is None:
            return tokens
        return torch.cat([tokens[:, :1], self.register_tokens.expand(len(tokens), -1, -1), tokens[:, 1:]], dim=1)


def official_names(state: State) -> dict[str, torch.Tensor]:
    """Return the tensors of a DINOv2 file under the official names.

    Args:
        state: Official, Hugging Face or RAD-DINO names, with or without a prefix; see
            `volseg.models.encoders.key_names.own_names`.
    """
    return own_names(state, (OFFICIAL, HUGGING_FACE))


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
