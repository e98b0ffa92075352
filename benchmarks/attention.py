"""Time and peak memory of the attention kernels, at the token counts of a 518-pixel slice and beyond.

    python benchmarks/attention.py --tokens 1370,5000 --kernels sdpa,math --repeats 5
    python benchmarks/attention.py --tokens 64 --repeats 1 --out runs/quick              # to check that it works

Every measurement is a process of its own, because memory that one kernel has freed would hide the next one's. The
kernels take turns, so that other load on the machine affects all alike; ratios are medians over neighbouring runs. The
peak is the highest resident memory above that before the call (Linux: VmHWM), on CUDA the allocator's. Minutes.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from statistics import median

from shared.arguments import add_threads, check_choices, integers, make_parser, words
from shared.measure import run_function
from shared.record import Record, origin, write_json, write_page
from shared.text import say

PASSES = ("forward", "forward+backward")


def main() -> int:
    """Measure and write the table."""
    args = parse_arguments()
    cells, refused = run_all(args)
    settings = {key: getattr(args, key) for key in ("threads", "device", "dtype", "heads", "head_size", "repeats")}
    record = {**origin(), **settings, "refused": refused, "cells": cells}
    write_json(args.out / "attention.json", record)
    write_page(args.out / "README.md", markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "attention")
    parser.add_argument("--tokens", type=integers, default=[1370, 5000], help="(1370,5000)")
    parser.add_argument("--kernels", type=words, default=["sdpa", "math", "xformers"], help="(sdpa,math,xformers)")
    parser.add_argument("--passes", type=words, default=list(PASSES), help=", ".join(PASSES))
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kernel, taking turns (%(default)s)")
    parser.add_argument("--heads", type=int, default=12, help="ViT-B has 12 (%(default)s)")
    parser.add_argument("--head-size", type=int, default=64, help="channels of a head (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    add_threads(parser)
    args = parser.parse_args()
    check_choices(parser, "--passes", args.passes, PASSES)
    return args


def run_all(args: argparse.Namespace) -> tuple[list[Record], dict[str, str]]:
    """Return a cell per pass, token count and kernel that runs here, and why other kernels do not run."""
    from encoders.attention_cost import DTYPES, measure
    from volseg.errors import VolsegError
    from volseg.models.attention import try_attention

    kernels, refused = [], {}
    for kernel in args.kernels:
        try:
            try_attention(kernel, args.head_size, args.device, DTYPES[args.dtype])
            kernels.append(kernel)
        except VolsegError as error:
            refused[kernel] = error.problem
            say(f"{kernel} is skipped: {error}")
    shared = {key: getattr(args, key) for key in ("heads", "head_size", "device", "dtype", "threads")}
    cells = []
    for name, tokens in product(args.passes, args.tokens):
        settings = {"tokens": tokens, "backward": name != "forward", **shared}
        runs: dict[str, list[Record]] = {kernel: [] for kernel in kernels}
        for _, kernel in product(range(args.repeats), kernels):
            runs[kernel].append(run_function(measure, {"kernel": kernel, **settings}))
            say(f"{kernel}, {tokens} tokens: {runs[kernel][-1]}")
        cells += [{"kernel": kernel, "tokens": tokens, "pass": name, "runs": runs[kernel]} for kernel in kernels]
    return cells, refused


def markdown(record: Record) -> str:
    """Return the table; ratios are of ``sdpa`` to the row's kernel, run by run."""
    machine = record["hardware"]
    where = machine["gpu"] if record["device"].startswith("cuda") else f"{machine['cpu']}, threads: {record['threads']}"
    lines = [
        "# Attention kernels",
        "",
        "| pass | tokens | kernel | time, ms | peak, MiB | time, sdpa / kernel | peak, sdpa / kernel |",
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
        f"torch {record['versions']['torch']}, {record['date'][:10]}, commit {str(record['commit'])[:10]}. "
        f"Medians of {record['repeats']} processes per row, taking turns; peaks are above the memory held just before "
        "the call, so without its inputs. Ratios are medians over neighbouring runs.",
        *(f"\nSkipped: {kernel} ({reason}).\n" for kernel, reason in record["refused"].items()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def sdpa_ratio(cells: list[Record], cell: Record, key: str) -> str:
    """Return the median ratio of sdpa's values to this cell's, run by run; empty without a pair."""
    same = ("tokens", "pass")
    partner = [c for c in cells if c["kernel"] == "sdpa" and all(c[name] == cell[name] for name in same)]
    if not partner or cell["kernel"] == "sdpa":
        return ""
    pairs = zip(partner[0]["runs"], cell["runs"], strict=True)
    return f"{median(one[key] / other[key] for one, other in pairs):.3f}"


if __name__ == "__main__":
    sys.exit(main())
