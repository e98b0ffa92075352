"""Memory of a training step against the depth of the batch: everything trained, with checkpointing, encoder frozen.

    python benchmarks/training.py --encoder dinov2_s14 --depths 8,16,32,64 --plane 128

Every cell is a process of its own that builds the default network, makes two steps on noise and tells how far its
resident memory rose. Linux only (the peak comes from /proc).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import origin

ROOT = Path(__file__).resolve().parents[1]
MODES: dict[str, dict[str, Any]] = {
    "full": {"adaptation": "full"},
    "full, checkpointed": {"adaptation": "full", "checkpoint_encoder": True},
    "frozen": {"adaptation": "frozen"},
}
SEED = 0


@dataclass(frozen=True)
class Patch:
    """What a network is built from; isotropic voxels."""

    patch_size: tuple[int, int, int]
    token_stride: int = 8
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    decoder_strides: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))
    class_names: tuple[str, ...] = ("background", "one", "two")
    num_classes: int = 3
    num_channels: int = 1


def main() -> int:
    """Measure every cell and write the table."""
    args = parse_arguments()
    if args.cell is not None:
        print(json.dumps(measure(args.encoder, args.plane, **json.loads(args.cell))))
        return 0
    cells = []
    for depth in args.depths:
        for mode in MODES:
            command = [sys.executable, __file__, "--encoder", args.encoder, "--plane", str(args.plane)]
            command += ["--cell", json.dumps({"mode": mode, "depth": depth})]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            cells.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{mode}, {depth} slices: {cells[-1]['step_mb']} MB", file=sys.stderr, flush=True)
    record = {**origin(), "seed": SEED, "parameters": cells[0]["parameters"]}
    stem = args.out / f"training_memory_{args.encoder}_{args.plane}"
    args.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps({**record, "cells": cells}, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(cells, record, args), encoding="utf-8")
    print(stem.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="dinov2_s14", help="model.encoder (%(default)s)")
    parser.add_argument("--depths", type=_depths, default=(8, 16, 32, 64), help="slices of the patch, multiples of 8")
    parser.add_argument("--plane", type=int, default=128, help="sides of a slice in voxels (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the tables")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(encoder: str, plane: int, *, mode: str, depth: int) -> dict[str, Any]:
    """One cell, in this process: rise of the resident memory over two training steps of one patch."""
    import torch

    from volseg.config.schema import ModelConfig
    from volseg.models.build import build_model, count_parameters
    from volseg.models.describe import describe_model

    torch.manual_seed(SEED)
    config, plan = ModelConfig(encoder=encoder, weights="random", **MODES[mode]), Patch((depth, plane, plane))
    kept = sum(part.kept_bytes for part in describe_model(config, plan, batch_size=1))
    model = build_model(config, plan).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    image, label = torch.randn(1, 1, depth + 2 * model.halo, plane, plane), torch.randint(3, (1, depth, plane, plane))
    _train_step(model, optimizer, image[..., :16, :16], label[..., :16, :16])  # libraries and optimizer state
    before = _reset_peak()
    started = time.perf_counter()
    for _ in range(2):
        _train_step(model, optimizer, image, label)
    seconds = (time.perf_counter() - started) / 2
    return {
        "mode": mode,
        "depth": depth,
        "parameters": count_parameters(model),
        "step_mb": round((_status("VmHWM") - before) / 1e6),
        "before_mb": round(before / 1e6),
        "kept_estimate_mb": round(kept / 1e6),
        "seconds": round(seconds, 2),
    }


def _train_step(model: Any, optimizer: Any, image: Any, label: Any) -> None:
    """Cross-entropy on every level, backward, AdamW."""
    import torch.nn.functional as F

    loss = 0
    for logits in model(image):
        target = F.interpolate(label[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0].long()
        loss = loss + F.cross_entropy(logits, target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[attr-defined]
    optimizer.step()


def markdown(cells: list[dict[str, Any]], record: dict[str, Any], args: argparse.Namespace) -> str:
    """The table: a row for each depth, a pair of columns for each mode."""
    lines = ["| slices | " + " | ".join(f"{mode}: MB (kept) | s" for mode in MODES) + " |"]
    lines.append("| --- |" + " --- |" * (2 * len(MODES)))
    for depth in args.depths:
        row = [next(c for c in cells if c["depth"] == depth and c["mode"] == mode) for mode in MODES]
        pairs = (f"{cell['step_mb']} ({cell['kept_estimate_mb']}) | {cell['seconds']:.1f}" for cell in row)
        lines.append(f"| {depth} | " + " | ".join(pairs) + " |")
    machine = record["hardware"]
    return (
        f"# Memory of a training step, {args.encoder}, slices of {args.plane} x {args.plane}\n\n"
        + "\n".join(lines)
        + "\n\nMB: rise of the process's resident memory above the built network with its optimizer's state, over two "
        "steps of one patch (default decoder and aggregator, token stride 8, float32). In brackets what "
        "`volseg describe` says autograd keeps. s: seconds a step. Each cell in its own process, "
        f"{record['date'][:10]}, torch {record['versions']['torch']}, {machine['cpu']}, {record['threads']} "
        f"threads, commit {(record['commit'] or 'unknown')[:12]}.\n"
    )


def _reset_peak() -> int:
    """Give freed memory back, start the peak anew and return the resident bytes."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(key: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _depths(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
