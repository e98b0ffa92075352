"""Key names of published DINOv2 weights, converted to the official ones.

The conversion renames and concatenates tensors and computes nothing, so it is exact.

Source: key names of facebookresearch/dinov2 (hub checkpoints; training checkpoints with the prefix
``teacher.backbone.`` and blocks in chunks) and of huggingface/transformers, ``models/dinov2`` and
``models/dinov2_with_registers`` (files of version 4 and 5 have the first of two names; version 5 has the second ones in
memory).
"""

from __future__ import annotations

import logging
import re

import torch

from volseg.models.contracts import State

logger = logging.getLogger(__name__)

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
_JOINED = {  # official name -> the parts of its rows, in order
    "attn.qkv": (
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    "mlp.w12": (("mlp.gate_proj", "mlp.up_proj"),),
}


def official_names(state: State) -> dict[str, torch.Tensor]:
    """Return the encoder's tensors of a state dict under the official names.

    The key of the patch embedding shows the encoder's prefix. The prefix is removed, and tensors without it (a
    classifier, a projection head, a student beside its teacher) are skipped with a message in the log. Unknown keys
    are kept, so that the strict check that follows names them.

    Args:
        state: Official, Hugging Face or RAD-DINO names, with or without a prefix.

    Returns:
        A new dict; tensors that were not concatenated are shared with ``state``.
    """
    prefix = _encoder_prefix(state)
    encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if len(encoder) < len(state):
        others = sorted({key.split(".")[0] for key in state if not key.startswith(prefix)})
        logger.info("read from the weight file: %s*; skipped: %s", prefix, ", ".join(others))
    if _HF_PATCH_WEIGHT in encoder:
        return _from_hugging_face(encoder)
    return {_CHUNKED_BLOCK.sub(r"blocks.\1.", key): value for key, value in encoder.items()}


def _encoder_prefix(state: State) -> str:
    """Return the prefix of the encoder's keys; of several encoders the teacher's, which DINOv2 publishes."""
    prefixes = [
        key.removesuffix(name)
        for key in state
        for name in (PATCH_WEIGHT, _HF_PATCH_WEIGHT)
        if key == name or key.endswith(f".{name}")
    ]
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if "teacher" in prefix]
    return prefixes[0] if len(prefixes) == 1 else ""


def _from_hugging_face(state: State) -> dict[str, torch.Tensor]:
    """Rename, and concatenate query, key and value and the halves of SwiGLU's first layer as the official layers do."""
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
