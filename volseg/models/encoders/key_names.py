"""Names under which DINOv2 weights are found in the wild, turned into the official ones.

Renaming moves and joins tensors and computes nothing, so the conversion is exact.

Source: key names of facebookresearch/dinov2 (hub checkpoints; training checkpoints with ``teacher.backbone.`` before
them and blocks in chunks) and of huggingface/transformers, ``models/dinov2`` and ``models/dinov2_with_registers``
(files of version 4 and 5 have the first of two names; the second ones are those of version 5 in memory).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]

PATCH_WEIGHT = "patch_embed.proj.weight"
_HF_PATCH_WEIGHT = "embeddings.patch_embeddings.projection.weight"
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")
_RENAMED = {
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
}
_JOINED = {  # official name -> the parts it is made of, in order along its rows
    "attn.qkv": (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    "mlp.w12": (("mlp.gate_proj", "mlp.up_proj"),),
}


def official_names(state: State) -> dict[str, torch.Tensor]:
    """The encoder of a state dict under the official names.

    The encoder is where the patch embedding is: what comes before that key's name is taken off, and tensors outside of
    it (a classifier, a projection head, a student beside its teacher) are left out with a line in the log. Keys that
    are not known stay as they are, for the strict check that follows to name.

    Args:
        state: Official, Hugging Face or RAD-DINO names, with or without a prefix.

    Returns:
        A new dict; tensors are shared with ``state`` where nothing was joined.
    """
    prefix = _encoder_prefix(state)
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if len(inside) < len(state):
        beside = sorted({key.split(".")[0] for key in state if not key.startswith(prefix)})
        logger.info("taken from the weight file: %s*; left out: %s", prefix, ", ".join(beside))
    if _HF_PATCH_WEIGHT in inside:
        return _from_hugging_face(inside)
    return {_CHUNKED_BLOCK.sub(r"blocks.\1.", key): value for key, value in inside.items()}


def _encoder_prefix(state: State) -> str:
    """What precedes the encoder's names; of several encoders the teacher's, which is the one DINOv2 publishes."""
    found = [
        key.removesuffix(name)
        for key in state
        for name in (PATCH_WEIGHT, _HF_PATCH_WEIGHT)
        if key == name or key.endswith(f".{name}")
    ]
    teachers = [prefix for prefix in found if "teacher" in prefix]
    chosen = teachers if len(found) > 1 else found
    return chosen[0] if len(chosen) == 1 else ""


def _from_hugging_face(state: State) -> dict[str, torch.Tensor]:
    """Rename, and join query, key and value, and the halves of SwiGLU's first layer, as the official layers do."""
    official, rest = {}, dict(state)
    for joined, alternatives in _JOINED.items():
        for parts in alternatives:
            for key in [key for key in rest if parts[0] in key]:
                names = [key.replace(parts[0], part) for part in parts]
                if all(name in rest for name in names):
                    tensors = [rest.pop(name) for name in names]
                    official[_renamed(key.replace(parts[0], joined))] = torch.cat(tensors)
    return official | {_renamed(key): value for key, value in rest.items()}


def _renamed(key: str) -> str:
    for theirs, ours in _RENAMED.items():
        key = re.sub(rf"(^|\.){re.escape(theirs)}(\.|$)", rf"\g<1>{ours}\g<2>", key)
    return key
