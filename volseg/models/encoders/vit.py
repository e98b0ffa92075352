"""The plain vision transformer with patches of 16 pixels: ImageNet, MAE and MSN weights.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Steiner et al. 2021, "How to train your ViT?"
(AugReg); He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners"; Assran et al. 2022, "Masked Siamese
Networks for Label-Efficient Learning". Names and epsilon follow huggingface/pytorch-image-models (timm), from which
facebookresearch/mae and facebookresearch/msn take them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from volseg.config.encoders import EncoderEntry
from volseg.models.attention import AttentionFunction, sdpa
from volseg.models.contracts import State
from volseg.models.encoders.key_names import KeyNames, own_names
from volseg.models.encoders.layers import Activation, Attention, Block, Mlp
from volseg.models.encoders.transformer import PositionCache, VisionTransformer, resize_position

TIMM = KeyNames(
    ignored=(
        *("head.", "head_dist.", "pre_logits."),  # classifiers
        *("decoder_", "mask_token"),  # MAE's decoder
        "fc.",  # MSN's projection head
    )
)
HUGGING_FACE = KeyNames(
    patch_weight="embeddings.patch_embeddings.projection.weight",
    renamed={
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "layers": "blocks",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "layernorm": "norm",
        "attention.output.dense": "attn.proj",
        "attention.o_proj": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    },
    joined={
        "attn.qkv": (
            ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
            ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        )
    },
    ignored=("pooler.", "embeddings.mask_token"),
)
"""``models/vit``, ``models/vit_mae`` and ``models/vit_msn`` of huggingface/transformers: files have the first of two
names, version 5 has the second ones in memory."""


class Vit(VisionTransformer):
    """A plain vision transformer: a class token, a learned position embedding, no LayerScale.

    Args:
        entry: Its catalogue entry.
        in_channels: Image channels.
        attend: Attention kernel.
        drop_path: Stochastic-depth rate of the last block; it rises linearly from 0.
        eps: Epsilon of the norms.
        activation: Of the feed-forward layers.
        patch_bias: Whether the patch embedding has a bias.
    """

    attention_layers = ("qkv", "proj")
    mlp_layers = ("fc1", "fc2")
    undecayed = ("pos_embed", "cls_token")

    def __init__(
        self,
        entry: EncoderEntry,
        in_channels: int = 3,
        attend: AttentionFunction = sdpa,
        drop_path: float = 0.0,
        *,
        eps: float = 1e-6,
        activation: Activation = F.gelu,
        patch_bias: bool = True,
    ) -> None:
        width = entry.width

        def block(rate: float) -> Block:
            attention, mlp = Attention(width, entry.heads, attend), Mlp(width, 4 * width, activation)
            return Block(width, attention, mlp, eps=eps, drop_path=rate, scaled=False)

        super().__init__(entry, in_channels, block, eps=eps, drop_path=drop_path, patch_bias=patch_bias)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + entry.grid**2, width))
        self._position = PositionCache(resize_position)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.initialise()

    def embed(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the input of the first block: class and patch tokens ``(B, 1 + h * w, E)``.

        The position embedding is resized to the exact size without antialiasing, as by MAE and transformers.
        """
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self._position(self.pos_embed, height, width).to(tokens.dtype)

    def official_state(self, state: State) -> dict[str, torch.Tensor]:
        """Return the tensors of a file with the names of timm, MAE, MSN or Hugging Face under this network's names."""
        return own_names(state, (TIMM, HUGGING_FACE))


def build(entry: EncoderEntry, in_channels: int, *, attend: AttentionFunction, drop_path: float) -> Vit:
    """Build the network of a catalogue entry with random weights."""
    return Vit(entry, in_channels, attend, drop_path)
