"""Features of every DINOv2 beside transformers' implementation, on shared random weights; parameter counts.

    python benchmarks/parity.py --models s,b   # minutes
    python benchmarks/parity.py                # S, B, L, g, each with and without registers; 9 GB of memory

Full depth in float32 at 518 pixels, and depth 2 in float64 at several sizes, where transformers' base models are given
the official position embedding (their own rule for other sizes is another one). Compared are the patch tokens of the
four taps, normalised, which have a standard deviation near 1. transformers computes the attention step by step
(``eager``), volseg with PyTorch's fused kernel; with the same kernel the differences of S were exactly zero.

The weights are drawn at the scale of a trained model's: matrices and embeddings N(0, 0.02), norms near 1, LayerScale
U(0.1, 1). So every block adds to the features (``blocks`` in the table: mean change of the normalised features from the
first tap to the last) and none explodes.

Results of the models that were not asked for stay as they were. Writes ``benchmarks/results/parity.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import origin, table
from torch import nn

from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.models.encoders.dinov2 import DinoV2
from volseg.models.encoders.key_names import official_names
from volseg.models.encoders.slices import tap_indices

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = {"s": 22_056_576, "b": 86_580_480, "l": 304_368_640, "g": 1_136_480_768}  # without registers
TARGETS = {"s": 1e-5, "b": 1e-5, "l": 1e-4, "g": 1e-4}
TARGET_FLOAT64 = 1e-10
NATIVE = (518, 518)
SIZES = (NATIVE, (224, 224), (448, 448), (448, 672))


def main() -> int:
    """Measure, write, and say with the exit code whether every target was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(PUBLISHED), help="of s,b,l,g")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    args = parser.parse_args()
    if unknown := set(args.models) - set(PUBLISHED):
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "parity.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in [f"dinov2_{size}14{suffix}" for size in PUBLISHED if size in args.models for suffix in ("", "_reg")]:
        print(name, file=sys.stderr)
        rows[name] = {**measure(name, args.seed), **origin(), "seed": args.seed}
        ordered = {key: rows[key] for key in CATALOGUE if key in rows}
        path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(markdown(ordered), encoding="utf-8")
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0 if all(row["met"] for row in rows.values()) else 1


def measure(name: str, seed: int) -> dict[str, Any]:
    """Counts and differences of one model."""
    variant, size = CATALOGUE[name], name[len("dinov2_")]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in DinoV2(variant).parameters())
    published = PUBLISHED[size] + variant.registers * variant.width
    shallow = compare(replace(variant, depth=2), SIZES, torch.float64, seed)
    full = compare(variant, (NATIVE,), torch.float32, seed)["518x518"]
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
    variant: EncoderEntry, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, seed: int
) -> dict[str, dict[str, float]]:
    """Largest and mean absolute difference of the taps at each image size, and what the features look like."""
    torch.manual_seed(seed)
    theirs = independent(variant, dtype)
    with torch.device("meta"):
        ours = DinoV2(variant)
    ours.load_state_dict(official_names(theirs.state_dict()), strict=True, assign=True)  # shares what is not joined
    theirs.embeddings.interpolate_pos_encoding = official_position(ours.pos_embed, registers=variant.registers > 0)
    indices = tap_indices(variant.depth)
    results = {}
    for height, width in sizes:
        images = torch.randn(1, 3, height, width, dtype=dtype)
        hidden = theirs(pixel_values=images, output_hidden_states=True).hidden_states
        expected = [theirs.layernorm(hidden[index + 1])[:, 1 + variant.registers :] for index in indices]
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


def independent(variant: EncoderEntry, dtype: torch.dtype) -> nn.Module:
    """transformers' model of this size with random weights, made without its own slow initialisation."""
    import transformers

    kind = "Dinov2WithRegisters" if variant.registers else "Dinov2"
    settings = {"num_register_tokens": variant.registers} if variant.registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=variant.width,
        num_hidden_layers=variant.depth,
        num_attention_heads=variant.heads,
        use_swiglu_ffn=variant.swiglu,
        image_size=NATIVE[0],
        patch_size=14,
        attn_implementation="eager",  # not the fused kernel that ours takes
        **settings,
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(config)
    assert not list(model.buffers()), "an empty buffer would stay empty"
    model = model.to(dtype).to_empty(device="cpu").eval()
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.1, 1.0)
        else:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.02)
    return model


def official_position(pos_embed: torch.Tensor, *, registers: bool) -> Callable[..., torch.Tensor]:
    """The official position embedding, written out after facebookresearch/dinov2 with each family's hub settings."""

    def position(_embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if (height, width) == NATIVE:
            return pos_embed
        rows, columns = height // 14, width // 14
        native = pos_embed[:, 1:].float().reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        settings: dict[str, Any] = {"size": (rows, columns), "antialias": True}
        if not registers:
            settings = {"scale_factor": ((rows + 0.1) / 37, (columns + 0.1) / 37), "antialias": False}
        resized = nn.functional.interpolate(native, mode="bicubic", **settings)  # (1, E, rows, columns)
        return torch.cat([pos_embed[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)], dim=1)

    return position


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table of all models measured so far."""
    head = ["model", "parameters", "published", "float32, 518x518", "target", "std", "blocks"]
    head += [f"float64, depth 2, {height}x{width}" for height, width in SIZES] + ["met"]
    lines = [head]
    for name, row in rows.items():
        full, shallow = row["full_depth_float32"], row["depth_2_float64"]
        cells = [name, f"{row['parameters']:,}", f"{row['published']:,}", f"{full['max_abs']:.1e}"]
        cells += [f"{full['target']:.0e}", f"{full['feature_std']:.2f}", f"{full['blocks']:.2f}"]
        cells += [f"{shallow[f'{height}x{width}']['max_abs']:.1e}" for height, width in SIZES]
        lines.append([*cells, "yes" if row["met"] else "**no**"])
    first = next(iter(rows.values()))
    note = (
        "Largest absolute difference of the patch tokens of four taps from transformers "
        f"{first['versions']['transformers']} (eager attention; volseg: sdpa) on shared "
        f"random weights (torch {first['versions']['torch']}). "
        f"Target in float64: {TARGET_FLOAT64:.0e}. Published counts are without registers; 4 E are added for them. "
        "`std` and `blocks`: see `benchmarks/parity.py`, which made this table."
    )
    return "\n".join(["# Parity of the DINOv2 family", "", note, "", table(lines), ""])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
