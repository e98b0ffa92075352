"""Time and peak memory of the attention kernels, at the token counts of a 518-pixel slice and beyond.

    python benchmarks/attention.py --tokens 1370,5000 --kernels sdpa,math --repeats 5

Every measurement is its own process, because memory that one kernel has taken would hide what the next one takes. The
kernels take turns, so that what else the machine does meets all alike; ratios are of neighbours, their median is given.
On the CPU the peak is the resident set's highest point above its size just before the call (Linux: VmHWM); on CUDA it
is what the allocator held at most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import origin

from volseg.errors import VolsegError
from volseg.models.attention import attention_function, try_attention

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
TIMED_CALLS = 3
PASSES = ("forward", "forward+backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> int:
    """Measure and write, or, in a process of its own, measure once."""
    args = parse_arguments()
    if args.one is not None:
        print(json.dumps(measure(**json.loads(args.one))))
        return 0
    cells, refused = run_all(args)
    record = {
        **origin(),
        "threads": args.threads,
        "device": args.device,
        "dtype": args.dtype,
        "heads": args.heads,
        "head_size": args.head_size,
        "repeats": args.repeats,
        "refused": refused,
        "cells": cells,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    print(markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=lambda text: [int(part) for part in text.split(",")], default=[1370, 5000])
    parser.add_argument("--kernels", type=lambda text: text.split(","), default=["sdpa", "math", "xformers"])
    parser.add_argument("--passes", type=lambda text: text.split(","), default=list(PASSES), help=", ".join(PASSES))
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kernel, taking turns (%(default)s)")
    parser.add_argument("--heads", type=int, default=12, help="ViT-B has 12 (%(default)s)")
    parser.add_argument("--head-size", type=int, default=64, help="channels of a head (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each process (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "attention")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of its own is to measure, as JSON
    args = parser.parse_args()
    if unknown := sorted(set(args.passes) - set(PASSES)):
        parser.error(f"unknown passes: {', '.join(unknown)}; there are {', '.join(PASSES)}")
    return args


def run_all(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One cell for each pass, token count and kernel that runs here, and why the others do not."""
    kernels, refused = [], {}
    for kernel in args.kernels:
        try:
            try_attention(kernel, args.head_size, args.device, DTYPES[args.dtype])
            kernels.append(kernel)
        except VolsegError as error:
            refused[kernel] = error.problem
            print(f"{kernel} is left out: {error}", file=sys.stderr)
    shared = {key: getattr(args, key) for key in ("heads", "head_size", "device", "dtype", "threads")}
    cells = []
    for backward, tokens in product([name != "forward" for name in args.passes], args.tokens):
        runs: dict[str, list[dict[str, float]]] = {kernel: [] for kernel in kernels}
        for _, kernel in product(range(args.repeats), kernels):
            runs[kernel].append(in_a_process({"kernel": kernel, "tokens": tokens, "backward": backward, **shared}))
        cells += [{"kernel": k, "tokens": tokens, "pass": PASSES[backward], "runs": runs[k]} for k in kernels]
    return cells, refused


def in_a_process(settings: dict[str, Any]) -> dict[str, float]:
    """Measure once in a new process."""
    command = [sys.executable, __file__, "--one", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{settings} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout)
    print(f"{settings['kernel']} {settings['tokens']}: {result}", file=sys.stderr)
    return result


def measure(
    *, kernel: str, tokens: int, backward: bool, heads: int, head_size: int, device: str, dtype: str, threads: int
) -> dict[str, float]:
    """Median seconds of a call, and MiB that the first one takes above what was there before it."""
    torch.set_num_threads(threads)
    attend = attention_function(kernel)

    def inputs(count: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        made = torch.randn(3, 1, heads, count, head_size, generator=generator)  # three of (B, heads, N, E)
        return [part.to(device, DTYPES[dtype]).requires_grad_(backward) for part in made.unbind()]

    def call(qkv: list[torch.Tensor]) -> None:
        for part in qkv:
            part.grad = None
        mixed = attend(*qkv)
        if backward:
            mixed.backward(torch.ones_like(mixed))
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    call(inputs(16))  # libraries load what they need at the first call
    qkv = inputs(tokens)
    peak_mib = peak_memory(lambda: call(qkv), device)
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        call(qkv)
        seconds.append(time.perf_counter() - start)
    return {"seconds": median(seconds), "peak_mib": peak_mib}


def peak_memory(call: Callable[[], None], device: str) -> float:
    """MiB that a call needs at most, above what was held before it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # the highest point starts again from here
    before = resident_kib("VmRSS")
    call()
    return (resident_kib("VmHWM") - before) / 1024


def resident_kib(field: str) -> int:
    """``VmRSS`` (resident now) or ``VmHWM`` (at most so far) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def markdown(record: dict[str, Any]) -> str:
    """The table; ratios are ``sdpa`` to the row's kernel, pair by pair."""
    machine = record["hardware"]
    where = machine["gpu"] if record["device"].startswith("cuda") else f"{machine['cpu']}, threads: {record['threads']}"
    lines = [
        "# Attention kernels",
        "",
        "| pass | tokens | kernel | time, ms | peak, MiB | sdpa's time to it | sdpa's peak to it |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for cell in record["cells"]:
        time_ms = median(run["seconds"] for run in cell["runs"]) * 1000
        peak = median(run["peak_mib"] for run in cell["runs"])
        ratios = " | ".join(sdpa_ratio(record["cells"], cell, key) for key in ("seconds", "peak_mib"))
        lines.append(
            f"| {cell['pass']} | {cell['tokens']:,} | {cell['kernel']} | {time_ms:.1f} | {peak:.1f} | {ratios} |"
        )
    lines += [
        "",
        f"Batch 1, {record['heads']} heads of {record['head_size']} channels, {record['dtype']}, on {where}; "
        f"torch {record['versions']['torch']}, {record['date'][:10]}, commit {str(record['commit'])[:12]}. "
        f"Medians of {record['repeats']} processes a row, taking turns; peaks are above what was held just before the "
        "call, so without its inputs. Ratios are medians over neighbouring runs.",
        *(f"\nLeft out: {kernel} ({reason})." for kernel, reason in record["refused"].items()),
    ]
    return "\n".join(lines) + "\n"


def sdpa_ratio(cells: list[dict[str, Any]], cell: dict[str, Any], key: str) -> str:
    """Median over the pairs of sdpa's value to this cell's; empty where there is nothing to compare."""
    same = ("tokens", "pass")
    partner = [c for c in cells if c["kernel"] == "sdpa" and all(c[name] == cell[name] for name in same)]
    if not partner or cell["kernel"] == "sdpa":
        return ""
    pairs = zip(partner[0]["runs"], cell["runs"], strict=True)
    return f"{median(one[key] / other[key] for one, other in pairs):.3f}"


if __name__ == "__main__":
    sys.exit(main())
