"""Weight gradients of 3D convolutions in bf16 on a CPU, against float32: are they computed at all?

    python benchmarks/bf16_convolution.py
    python benchmarks/bf16_convolution.py --quick

oneDNN is limited to the instructions of other processors (``ONEDNN_MAX_CPU_ISA``), as far as this one has them, so that
a CPU with AMX shows what CPUs without it do. Freed memory is filled with NaN before each gradient, so that a gradient
in uninitialised memory shows. Each processor is a process of its own, because torch can crash there. Minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from itertools import product
from typing import Any

from shared.arguments import add_quick, make_parser, use_quick_folder, use_threads, words
from shared.record import Record, origin, write_json, write_page
from shared.text import say

PROCESSORS = {"AVX512_CORE_BF16": "with avx512_bf16, without AMX", "AVX512_CORE_AMX": "with AMX"}
SIZES = (
    (1, 1, 1),
    (1, 2, 2),
    (2, 2, 2),
    (2, 4, 4),
    (2, 8, 8),
    (2, 32, 32),
    (3, 5, 7),
    (4, 4, 4),
    (8, 8, 8),
    (40, 56, 40),
)
LAYERS = (((3, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((1, 3, 3), (1, 2, 2)))
CHANNELS = ((1, 8), (8, 8), (16, 32))
WRONG = 0.05
"""Relative error above which a gradient is wrong; rounding to bf16 gives less than 0.01."""


def main() -> int:
    """Measure and write the table."""
    parser = make_parser(__doc__, "bf16_convolution")
    parser.add_argument("--processors", type=words, default=list(PROCESSORS), help=", ".join(PROCESSORS))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # in the process of one processor
    add_quick(parser)
    args = parser.parse_args()
    use_quick_folder(args, "bf16_convolution")
    sizes = SIZES[2:5] if args.quick else SIZES
    if args.inside:
        for cell in measure(sizes):
            print(*cell, flush=True)
        return 0
    cells = {processor: run(processor, args.quick) for processor in args.processors}
    record = {**origin(), "layers": LAYERS, "channels": CHANNELS, "sizes": sizes, "cells": cells}
    write_json(args.out / "bf16_convolution.json", record)
    write_page(args.out / "README.md", markdown(record))
    return 0


def run(processor: str, quick: bool) -> Record:
    """Measure with the instructions of a processor, in a process of its own."""
    command = [sys.executable, __file__, "--inside", *(["--quick"] if quick else [])]
    done = subprocess.run(
        command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": processor}, capture_output=True, text=True, check=False
    )
    wrong: dict[str, int] = {}
    rows = [line.split() for line in done.stdout.splitlines()]
    for size, layer, error in rows:
        key = f"{size} {layer}"
        wrong[key] = wrong.get(key, 0) + (not float(error) < WRONG)
    say(f"{processor}: {len(rows)} gradients, {sum(wrong.values())} wrong, exit code {done.returncode}")
    return {"gradients": len(rows), "wrong": wrong, "exit_code": done.returncode}


def measure(sizes: Any) -> Any:
    """Yield size, layer and relative error of every configuration."""
    use_threads(1)
    import torch

    torch.manual_seed(0)
    for size, (kernel, stride), (inputs, outputs) in product(sizes, LAYERS, CHANNELS):
        for last in (True, False):
            form = torch.channels_last_3d if last else torch.contiguous_format
            padding = [side // 2 for side in kernel]
            layer = torch.nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False).to(memory_format=form)
            x = torch.randn(1, inputs, *size).to(memory_format=form)
            y = layer(x)
            gradient = torch.randn_like(y)
            (expected,) = torch.autograd.grad(y, layer.weight, gradient)
            worst = 0.0
            for _ in range(3):
                fill_freed_memory(torch)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    y = layer(x)
                (actual,) = torch.autograd.grad(y, layer.weight, gradient.to(y.dtype))
                error = float((actual.float() - expected).norm() / expected.norm())
                worst = max(worst, error if error == error else float("inf"))  # NaN is not equal to itself
            yield "x".join(map(str, size)), f"{'x'.join(map(str, kernel))}/{'x'.join(map(str, stride))}", f"{worst:.3g}"


def fill_freed_memory(torch: Any) -> None:
    """Allocate blocks of the size of weight gradients, fill them with NaN and free them."""
    counts = [27 * inputs * outputs for inputs, outputs in CHANNELS]
    blocks = [torch.full((n,), float("nan"), dtype=kind) for n in counts for kind in (torch.float32, torch.bfloat16)]
    blocks += [block.clone() for block in blocks for _ in range(40)]
    del blocks


def markdown(record: Record) -> str:
    """Return the table: wrong gradients by input size and layer."""
    processors = list(record["cells"])
    lines = [
        "# Weight gradients of 3D convolutions in bf16",
        "",
        "| input | kernel/stride | " + " | ".join(PROCESSORS[name] for name in processors) + " |",
        "| --- | --- | " + " | ".join("---:" for _ in processors) + " |",
    ]
    keys = sorted({key for cell in record["cells"].values() for key, count in cell["wrong"].items() if count})
    for key in keys:
        counts = [record["cells"][name]["wrong"].get(key, 0) for name in processors]
        lines.append(f"| {key.replace(' ', ' | ')} | " + " | ".join(map(str, counts)) + " |")
    totals = "; ".join(
        f"{PROCESSORS[name]}: {sum(cell['wrong'].values())} of {cell['gradients']} wrong"
        + (f", then the process crashed (exit code {cell['exit_code']})" if cell["exit_code"] else "")
        for name, cell in record["cells"].items()
    )
    lines += [
        "",
        f"Wrong: relative error over {WRONG} against float32, mostly NaN from uninitialised memory. Each row has "
        f"{2 * len(record['channels'])} gradients ({len(record['channels'])} numbers of channels, channels last and "
        f"contiguous); rows without an error are omitted. {totals}.",
        "",
        "So bf16 on a CPU without AMX is unsafe for volumes of two slices, and volseg refuses it there. With AMX only "
        "inputs whose plane is a single voxel are affected, at stride 2; the stem never has them, since patches are "
        "multiples of the deepest stride.",
        "",
        f"torch {record['versions']['torch']}, {record['hardware']['cpu']}, {record['date'][:10]}, commit "
        f"{str(record['commit'])[:10]}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
