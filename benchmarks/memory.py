"""Peak memory of prediction against the length of the scan, beside MONAI's sliding window on the same network.

    python benchmarks/memory.py                        # 250 to 2000 slices, and ViT-S over 96 slices
    python benchmarks/memory.py --parts length --slices 250,500    # a part; the others stay as they were
    python benchmarks/memory.py --parts length --window 16,256,256 --out DIR    # nine window columns: twice the time
    python benchmarks/memory.py --quick                # tiny, to see that it works; runs/quick

``length``: scans of n x 512 x 512 int16 with 25 classes through a network that is as small as it can be (encoder
``tiny`` at token stride 16, 8 features, windows of 8 x 512 x 512), so that 2000 slices take about 20 minutes on two
cores; memory is made of slabs, logits and tokens, which do not know how deep the network is. ``vit``: the default
network over 96 slices, where activations count. Every scan has a process of its own, is made slab by slab in place, and
counts to the byte. The figure is the process's peak above what it held before the call (interpreter, libraries, loaded
model, the scan as stored), less the mask. A process that grows above ``--limit-gib`` is stopped, so that the machine
never swaps; MONAI is not started on longer scans than the one it was stopped at.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("length", "vit")
SIZES: dict[str, dict[str, Any]] = {
    "length": {"slices": [250, 500, 1000, 2000], "side": 512, "classes": 25, "window": (8, 512, 512), "stride": 16}
    | {"network": {"encoder": "tiny", "features": 8, "adjacent_slices": 1}},
    "vit": {"slices": [96], "side": 512, "classes": 25, "window": (32, 128, 128), "stride": 8}
    | {"network": {"encoder": "dinov2_s14"}},
}
QUICK: dict[str, dict[str, Any]] = {
    "length": {"slices": [24, 48], "side": 96, "classes": 5, "window": (8, 64, 64), "stride": 16}
    | {"network": {"encoder": "tiny", "features": 4, "adjacent_slices": 1}},
    "vit": {"slices": [12], "side": 48, "classes": 5, "window": (8, 32, 32), "stride": 8}
    | {"network": {"encoder": "tiny"}},
}


def main() -> int:
    """Measure, and write the table and the plot."""
    args = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    from memory_tables import write_tables
    from record import minutes, save, say

    for part in args.parts:
        sizes = sizes_of(args, part)
        lengths = args.slices if args.slices and part == "length" else sizes["slices"]
        wanted = [(way, n) for way in args.ways for n in lengths]
        per_slice_s = child(args, part, "probe", lengths[0])["slice_s"]
        say(f"{part}: about {minutes(per_slice_s * sum(n for _, n in wanted))}, if MONAI reaches its end everywhere")
        stopped: dict[str, int] = {}
        for way, n in wanted:
            if n > stopped.get(way, n):
                say(f"  {way}, {n} slices: not started, {stopped[way]} slices were too many already")
                continue
            started = time.perf_counter()
            result = child(args, part, way, n)
            if result["stopped"]:
                stopped[way] = n
            say(f"  {way}, {n} slices: {result}")
            settings = {**sizes, "slices": n, "way": way, "max_memory_gb": args.max_memory_gb, "seed": 0}
            save(args.out, f"memory_{part}_{way}_{n:05d}", settings, result, time.perf_counter() - started)
    print(write_tables(args.out))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--ways", type=lambda text: text.split(","), default=["volseg", "monai"], help="volseg, monai")
    parser.add_argument("--slices", type=lambda text: [int(n) for n in text.split(",")], help="250,500,1000,2000")
    parser.add_argument("--window", type=lambda text: tuple(int(n) for n in text.split(",")), help="of length: D,H,W")
    parser.add_argument("--max-memory-gb", type=float, default=2.5, help="volseg's bound, 10^9 bytes (%(default)s)")
    parser.add_argument("--limit-gib", type=float, default=18, help="a process above it is stopped (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--out", type=Path, help="folder of the results (benchmarks/results)")
    args = parser.parse_args()
    args.out = args.out or (Path("runs") / "quick" if args.quick else HERE / "results")
    unknown = {*args.parts} - {*PARTS} | {*args.ways} - {"volseg", "monai"}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    return args


def sizes_of(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """What a part measures."""
    sizes = (QUICK if args.quick else SIZES)[part]
    return sizes | {"window": args.window} if args.window and part == "length" else sizes


def child(args: argparse.Namespace, part: str, way: str, slices: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    import json

    from processes import run_watched

    settings = {
        **sizes_of(args, part),
        "slices": slices,
        "way": way,
        "threads": args.threads,
        "max_memory_bytes": int(args.max_memory_gb * 1e9),
    }
    command = [sys.executable, str(HERE / "memory_child.py"), json.dumps(settings)]
    return run_watched(command, int(args.limit_gib * 2**30))


if __name__ == "__main__":
    sys.exit(main())
