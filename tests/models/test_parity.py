"""The same features as an independent implementation (transformers) on shared random weights, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volseg.models.dinov2 import DinoV2, Variant

transformers = pytest.importorskip("transformers", reason="the independent DINOv2 comes with volseg[bench]")

VARIANTS = {
    "mlp": Variant(width=64, depth=2, heads=4),
    "swiglu": Variant(width=64, depth=2, heads=4, swiglu=True),
    "mlp-registers": Variant(width=64, depth=2, heads=4, registers=4),
    "swiglu-registers": Variant(width=64, depth=2, heads=4, swiglu=True, registers=4),
}


def independent(variant: Variant) -> nn.Module:
    kind = "Dinov2WithRegisters" if variant.registers else "Dinov2"
    settings = {
        "hidden_size": variant.width,
        "num_hidden_layers": variant.depth,
        "num_attention_heads": variant.heads,
        "use_swiglu_ffn": variant.swiglu,
        "image_size": 518,
        "patch_size": 14,
        "mlp_ratio": 4,
    }
    if variant.registers:
        settings["num_register_tokens"] = variant.registers
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))


RENAMED = {  # transformers 4 and 5 -> official
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm.": "norm.",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "mlp.down_proj": "mlp.w3",
}
JOINED = {  # parts of an official tensor, in its order
    "attention.attention.query": "attn.qkv",
    "attention.attention.key": "attn.qkv",
    "attention.attention.value": "attn.qkv",
    "attention.q_proj": "attn.qkv",
    "attention.k_proj": "attn.qkv",
    "attention.v_proj": "attn.qkv",
    "mlp.gate_proj": "mlp.w12",
    "mlp.up_proj": "mlp.w12",
}


def official_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """transformers' weights under the official names, without a look at ours."""
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for key, value in model.state_dict().items():
        name, order = key, 0
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        for index, (old, new) in enumerate(JOINED.items()):
            if old in name:
                name, order = name.replace(old, new), index
        parts.setdefault(name, []).append((order, value))
    return {
        name: torch.cat([value for _, value in sorted(found, key=lambda pair: pair[0])])
        for name, found in parts.items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_features_equal_transformers(name: str) -> None:
    variant = VARIANTS[name]
    torch.manual_seed(0)
    theirs, ours = independent(variant).double().eval(), DinoV2(variant).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours.load_state_dict(official_state(theirs), strict=True)
    images = torch.randn(1, 3, 518, 518, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(pixel_values=images, output_hidden_states=True)
        last = ours.patch_tokens(images)
        first = ours.taps(images, (0,))[0]
        skip = 1 + variant.registers
        torch.testing.assert_close(last, expected.last_hidden_state[:, skip:], rtol=0, atol=1e-10)
        theirs_first = theirs.layernorm(expected.hidden_states[1])[:, skip:]
        torch.testing.assert_close(first, theirs_first, rtol=0, atol=1e-10)
    assert last.std() > 0.01
