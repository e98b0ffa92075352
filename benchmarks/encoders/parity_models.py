"""volseg's encoders beside those of transformers, on shared random weights."""

from __future__ import annotations

import gc
import resource
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import nn

from encoders.parity_oracles import FAMILIES, oracle
from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.models.attention import reference_attention, sdpa
from volseg.models.encoders.slices import tap_indices

PUBLISHED = {"s14": 22_056_576, "b14": 86_580_480, "l14": 304_368_640, "g14": 1_136_480_768}
"""Published parameter counts of DINOv2, without registers."""
TARGET_FLOAT64 = 1e-10
SIZES = {"dinov2": ((518, 518), (224, 224), (448, 448), (448, 672))}
OTHER_SIZES = ((224, 224), (448, 448), (224, 336), (112, 560))
"""Image sizes, multiples of 14 and 16; the first is that of the float32 comparison."""


def compared() -> list[str]:
    """Return the encoders of the catalogue that have an independent implementation."""
    return [name for name in CATALOGUE if name.partition("_")[0] in FAMILIES]


def sizes_of(name: str) -> Sequence[tuple[int, int]]:
    """Return the image sizes at which an encoder is compared."""
    return SIZES.get(name.partition("_")[0], OTHER_SIZES)


def measure(name: str, seed: int) -> dict[str, Any]:
    """Return parameter counts and differences of one model of the catalogue."""
    entry, sizes = CATALOGUE[name], sizes_of(name)
    target = 1e-5 if entry.width < 1000 else 1e-4
    shallow, _ = compare(name, replace(entry, depth=2), sizes, torch.float64, seed)
    full, counts = compare(name, entry, sizes[:1], torch.float32, seed)
    expected = counts["transformers"]
    if name.startswith("dinov2_"):
        expected = PUBLISHED[name.split("_")[1]] + entry.registers * entry.width
    (row,) = full.values()
    met = counts["volseg"] == expected and row["max_abs"] <= target
    return {
        "parameters": counts["volseg"],
        "expected": expected,
        "full_depth_float32": {"target": target, **row},
        "depth_2_float64": {"target": TARGET_FLOAT64, **shallow},
        "met": met and all(row["max_abs"] <= TARGET_FLOAT64 for row in shallow.values()),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),  # of this process so far
    }


@torch.no_grad()
def compare(
    name: str, entry: EncoderEntry, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return the differences of the taps and the scale of the features per image size, and both parameter counts."""
    torch.manual_seed(seed)
    theirs = oracle(name, entry, dtype)
    attend = sdpa if name.startswith("dinov2_") else reference_attention  # not the kernel of transformers' model
    with torch.device("meta"):
        ours = import_module(entry.module).build(entry, 3, attend=attend, drop_path=0.0)
    if hasattr(ours, "rope_embed"):  # Hugging Face's files lack its periods
        ours.rope_embed = type(ours.rope_embed)(entry.width // entry.heads).to(dtype)
    ours.load_state_dict(ours.official_state(theirs.model.state_dict()), strict=True, assign=True)  # shares most
    theirs.follow(ours.eval())
    indices = tap_indices(entry.depth)
    results = {}
    for height, width in sizes:
        images = torch.randn(1, 3, height, width, dtype=dtype)
        expected = theirs.taps(images, indices)
        taps = ours.taps(images, indices)
        gaps = [(a - b).abs() for a, b in zip(taps, expected, strict=True)]
        results[f"{height}x{width}"] = {
            "max_abs": max(gap.max().item() for gap in gaps),
            "mean_abs": sum(gap.mean().item() for gap in gaps) / len(gaps),
            "feature_std": taps[-1].std().item(),
            "feature_max": taps[-1].abs().max().item(),
            "blocks": (taps[-1] - taps[0]).abs().mean().item(),
        }
        del expected, taps, gaps
    counts = {"volseg": _count(ours), "transformers": _count(theirs.model)}
    del theirs, ours
    gc.collect()
    return results, counts


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
