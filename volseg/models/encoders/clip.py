"""The image tower of CLIP.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; names of
mlfoundations/open_clip, which has those of openai/CLIP; activations: Cherti et al. 2022, "Reproducible scaling laws for
contrastive language-image learning" (LAION's models have GELU).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from volseg.config.encoders import EncoderEntry
from volseg.models.attention import AttentionFunction, sdpa
from volseg.models.contracts import State
from volseg.models.encoders.key_names import KeyNames, own_names
from volseg.models.encoders.vit import Vit

EPS = 1e-5
OPEN_CLIP = KeyNames(
    patch_weight="conv1.weight",
    renamed={
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1": "patch_embed.proj",
        "ln_pre": "norm_pre",
        "ln_post": "norm",
        "transformer.resblocks": "blocks",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_weight": "attn.qkv.weight",
        "attn.in_proj_bias": "attn.qkv.bias",
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    },
    ignored=("proj",),  # into the space that images and texts share
)
"""``visual.`` of mlfoundations/open_clip and openai/CLIP."""
HUGGING_FACE = KeyNames(
    patch_weight="embeddings.patch_embedding.weight",
    renamed={
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding.weight": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "pre_layrnorm": "norm_pre",
        "post_layernorm": "norm",
        "encoder.layers": "blocks",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.out_proj": "attn.proj",
    },
    joined={"attn.qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),)},
    ignored=("embeddings.position_ids",),
)
"""``vision_model.`` of ``models/clip`` in huggingface/transformers."""
TIMM = KeyNames(ignored=("head.",))
"""``vit_*_clip_*`` of huggingface/pytorch-image-models."""


class Clip(Vit):
    """A ViT with a norm before the first block and no bias in the patch embedding.

    CLIP applies its final norm to the class token alone; here every tap passes it, as with the other encoders.

    Args:
        entry: Its catalogue entry.
        in_channels: Image channels.
        attend: Attention kernel.
        drop_path: Stochastic-depth rate of the last block; it rises linearly from 0.
    """

    def __init__(
        self, entry: EncoderEntry, in_channels: int = 3, attend: AttentionFunction = sdpa, drop_path: float = 0.0
    ) -> None:
        activation = quick_gelu if entry.quick_gelu else F.gelu
        super().__init__(entry, in_channels, attend, drop_path, eps=EPS, activation=activation, patch_bias=False)
        self.norm_pre = nn.LayerNorm(entry.width, eps=EPS)

    def embed(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return the input of the first block: normalised class and patch tokens ``(B, 1 + h * w, E)``."""
        return self.norm_pre(super().embed(patches, height, width))  # type: ignore[no-any-return]

    def official_state(self, state: State) -> dict[str, torch.Tensor]:
        """Return the tensors of a file with the names of open_clip, Hugging Face or timm under this network's names."""
        own = own_names(state, (OPEN_CLIP, HUGGING_FACE, TIMM))
        for name in ("cls_token", "pos_embed"):
            if name in own:
                own[name] = own[name].reshape(1, -1, own[name].shape[-1])  # from (E,) and (1 + M * M, E)
        return own


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """Approximate GELU as OpenAI's CLIP does, element by element.

    Source: openai/CLIP, ``clip/model.py``.
    """
    return x * torch.sigmoid(1.702 * x)


def build(entry: EncoderEntry, in_channels: int, *, attend: AttentionFunction, drop_path: float) -> Clip:
    """Build the network of a catalogue entry with random weights."""
    return Clip(entry, in_channels, attend, drop_path)
