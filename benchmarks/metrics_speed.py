"""Speed and values of the metrics beside MONAI, MedPy and surface-distance, and their values for empty masks.

    python benchmarks/metrics_speed.py                      # everything: about an hour, nearly all of it MedPy
    python benchmarks/metrics_speed.py --parts empty,large  # some parts; the others are kept
    python benchmarks/metrics_speed.py --quick              # small volumes, to check that it works; runs/quick

All tools run in this process with one thread, on the same seeded masks (``metrics/organ_shapes.py``). Ratios are within
one pair. The parts: ``pairs`` (organ-like masks), ``traps`` (predictions that are slow for search trees), ``large`` (a
whole-body map), ``scaling`` (size of the volume, number of classes) and ``empty``.
"""

from __future__ import annotations

import argparse
import sys
import time

from shared.arguments import add_quick, check_choices, make_parser, use_quick_folder, words
from shared.record import origin, write_json, write_page
from shared.text import say

PARTS = ("pairs", "traps", "large", "scaling", "empty")
TOOLS = ("volseg", "monai", "surface-distance", "medpy")


def main() -> int:
    """Run the parts and write the tables."""
    args = parse_arguments()
    from metrics.empty_masks import empty_masks
    from metrics.large_map import large_map
    from metrics.libraries import prepare_libraries
    from metrics.speed import hard_predictions, pairs, scaling
    from metrics.tables import write_tables

    measure = {
        "pairs": lambda: pairs(args.pairs, args.tools, args.quick),
        "traps": hard_predictions,
        "large": lambda: large_map(args.quick),
        "scaling": lambda: scaling(args.quick),
        "empty": empty_masks,
    }
    prepare_libraries()
    for part in args.parts:
        started = time.perf_counter()
        result = measure[part]()
        record = {"part": part, **origin(), "seconds": round(time.perf_counter() - started, 1), "result": result}
        write_json(args.out / f"{part}.json", record)
        say(f"{part}: {record['seconds']} s")
    write_page(args.out / "README.md", write_tables(args.out))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "metrics")
    parser.add_argument("--parts", type=words, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--pairs", type=int, default=5, help="pairs of masks, seeds 0 ... (%(default)s)")
    parser.add_argument("--tools", type=words, default=list(TOOLS), help=", ".join(TOOLS))
    add_quick(parser)
    args = parser.parse_args()
    check_choices(parser, "--parts", args.parts, PARTS)
    check_choices(parser, "--tools", args.tools, TOOLS)
    use_quick_folder(args, "metrics")
    return args


if __name__ == "__main__":
    sys.exit(main())
