"""Peak memory of prediction against the length of the scan, beside MONAI's sliding window on the same network.

    python benchmarks/prediction_memory.py                       # 250 to 2000 slices, and ViT-S over 96 slices; hours
    python benchmarks/prediction_memory.py --parts length --slices 250,500    # a part; the others are kept
    python benchmarks/prediction_memory.py --parts length --window 16,256,256 --out DIR    # nine columns of windows
    python benchmarks/prediction_memory.py --quick               # tiny, to check that it works; runs/quick

``length``: scans of n x 512 x 512 int16 with 25 classes through a network that is as small as it can be (encoder
``tiny`` at token stride 16, 8 features, windows of 8 x 512 x 512), so that 2000 slices take about 20 minutes on two
cores; slabs, logits and tokens fill the memory, and their size does not depend on the depth of the network. ``vit``:
the default network over 96 slices, where activations count. Every scan has a process of its own and is made slab by
slab in place. The figure is the process's peak above its memory before the call (interpreter, libraries, loaded model,
the scan as stored), minus the mask. A process that grows above ``--limit-gib`` is stopped, so that the machine never
swaps; MONAI is not started on longer scans than the one at which it was stopped. Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from shared.arguments import (
    add_quick,
    add_threads,
    check_choices,
    integers,
    make_parser,
    size,
    use_quick_folder,
    words,
)
from shared.measure import run_function
from shared.record import save, write_page
from shared.text import minutes_text, say

WAYS = ("volseg", "monai")
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
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes that measure
    from prediction.memory_tables import write_tables

    for part in args.parts:
        measure_part(args, part)
    write_page(args.out / "README.md", write_tables(args.out))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "prediction_memory")
    parser.add_argument("--parts", type=words, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--ways", type=words, default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument("--slices", type=integers, help="of length (250,500,1000,2000)")
    parser.add_argument("--window", type=size, help="D,H,W, of length (8,512,512)")
    parser.add_argument("--max-memory-gb", type=float, default=2.5, help="volseg's limit, 10^9 bytes (%(default)s)")
    parser.add_argument("--limit-gib", type=float, default=18, help="a process above it is stopped (%(default)s)")
    add_threads(parser)
    add_quick(parser)
    args = parser.parse_args()
    check_choices(parser, "--parts", args.parts, PARTS)
    check_choices(parser, "--ways", args.ways, WAYS)
    use_quick_folder(args, "prediction_memory")
    return args


def measure_part(args: argparse.Namespace, part: str) -> None:
    """Measure all lengths of a part by every way; each writes its own record."""
    from prediction.memory import measure, seconds_per_slice

    sizes: dict[str, Any] = dict((QUICK if args.quick else SIZES)[part])
    lengths = sizes.pop("slices")
    if part == "length":
        lengths = args.slices or lengths
        sizes["window"] = args.window or sizes["window"]
    sizes["threads"] = args.threads
    slice_s = run_function(seconds_per_slice, {**sizes, "slices": lengths[0]})["slice_s"]
    say(f"{part}: about {minutes_text(slice_s * sum(lengths) * len(args.ways))}, if MONAI completes every scan")
    for way in args.ways:
        for slices in sorted(lengths):
            settings = {**sizes, "slices": slices, "way": way, "max_memory_bytes": int(args.max_memory_gb * 1e9)}
            started = time.perf_counter()
            result = run_function(measure, settings, limit_bytes=int(args.limit_gib * 2**30))
            say(f"  {way}, {slices} slices: {result}")
            settings = {**sizes, "slices": slices, "way": way, "max_memory_gb": args.max_memory_gb, "seed": 0}
            save(args.out, f"{part}_{way}_{slices:05d}", settings, result, time.perf_counter() - started)
            if result["stopped"]:
                break  # longer scans need more


if __name__ == "__main__":
    sys.exit(main())
