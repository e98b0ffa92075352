"""volseg's DINOv2 beside the implementation of transformers, on shared random weights."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.models.encoders.dinov2 import DinoV2, official_names
from volseg.models.encoders.slices import tap_indices

PUBLISHED = {"s": 22_056_576, "b": 86_580_480, "l": 304_368_640, "g": 1_136_480_768}
"""Published parameter counts, without registers."""
TARGETS = {"s": 1e-5, "b": 1e-5, "l": 1e-4, "g": 1e-4}
TARGET_FLOAT64 = 1e-10
NATIVE = (518, 518)
SIZES = (NATIVE, (224, 224), (448, 448), (448, 672))


def measure(name: str, seed: int) -> dict[str, Any]:
    """Return parameter counts and differences of one model of the catalogue."""
    entry, size = CATALOGUE[name], name[len("dinov2_")]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in DinoV2(entry).parameters())
    published = PUBLISHED[size] + entry.registers * entry.width
    shallow = compare(replace(entry, depth=2), SIZES, torch.float64, seed)
    full = compare(entry, (NATIVE,), torch.float32, seed)["518x518"]
    met = parameters == published and full["max_abs"] <= TARGETS[size]
    return {
        "parameters": parameters,
        "published": published,
        "full_depth_float32": {"target": TARGETS[size], **full},
        "depth_2_float64": {"target": TARGET_FLOAT64, **shallow},
        "met": met and all(row["max_abs"] <= TARGET_FLOAT64 for row in shallow.values()),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),  # of this process so far
    }


@torch.no_grad()
def compare(
    entry: EncoderEntry, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, seed: int
) -> dict[str, dict[str, float]]:
    """Return the largest and mean absolute difference of the taps, and the scale of the features, per image size."""
    torch.manual_seed(seed)
    theirs = transformers_model(entry, dtype)
    with torch.device("meta"):
        ours = DinoV2(entry)
    ours.load_state_dict(official_names(theirs.state_dict()), strict=True, assign=True)  # shares most tensors
    theirs.embeddings.interpolate_pos_encoding = official_position(ours.pos_embed, registers=entry.registers > 0)
    indices = tap_indices(entry.depth)
    results = {}
    for height, width in sizes:
        images = torch.randn(1, 3, height, width, dtype=dtype)
        hidden = theirs(pixel_values=images, output_hidden_states=True).hidden_states
        expected = [theirs.layernorm(hidden[index + 1])[:, 1 + entry.registers :] for index in indices]
        taps = ours.eval().taps(images, indices)
        gaps = [(a - b).abs() for a, b in zip(taps, expected, strict=True)]
        results[f"{height}x{width}"] = {
            "max_abs": max(gap.max().item() for gap in gaps),
            "mean_abs": sum(gap.mean().item() for gap in gaps) / len(gaps),
            "feature_std": taps[-1].std().item(),
            "feature_max": taps[-1].abs().max().item(),
            "blocks": (taps[-1] - taps[0]).abs().mean().item(),
        }
        del hidden, expected, taps, gaps
    del theirs, ours
    gc.collect()
    return results


def transformers_model(entry: EncoderEntry, dtype: torch.dtype) -> nn.Module:
    """Return the model of transformers of this size with random weights, without its own slow initialisation."""
    import transformers

    kind = "Dinov2WithRegisters" if entry.registers else "Dinov2"
    settings = {"num_register_tokens": entry.registers} if entry.registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=entry.width,
        num_hidden_layers=entry.depth,
        num_attention_heads=entry.heads,
        use_swiglu_ffn=entry.swiglu,
        image_size=NATIVE[0],
        patch_size=14,
        attn_implementation="eager",  # volseg uses the fused kernel
        **settings,
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(config)
    assert not list(model.buffers()), "buffers would stay uninitialised"
    model = model.to(dtype).to_empty(device="cpu").eval()
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.1, 1.0)
        else:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.02)
    return model


def official_position(pos_embed: torch.Tensor, *, registers: bool) -> Callable[..., torch.Tensor]:
    """Return the official interpolation of the position embedding.

    Source: facebookresearch/dinov2, with the hub settings of each family.
    """

    def position(_embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if (height, width) == NATIVE:
            return pos_embed
        rows, columns = height // 14, width // 14
        native = pos_embed[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        settings: dict[str, Any] = {"size": (rows, columns), "antialias": True}
        if not registers:
            settings = {"scale_factor": ((rows + 0.1) / 37, (columns + 0.1) / 37), "antialias": False}
        resized = nn.functional.interpolate(native, mode="bicubic", **settings)  # (1, E, rows, columns)
        return torch.cat([pos_embed[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)], dim=1)

    return position
