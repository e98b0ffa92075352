"""Memory of a training step against the depth of the patch: everything trained, with checkpointing, encoder frozen.

    python benchmarks/training_memory.py --encoder dinov2_s14 --depths 8,16,32,64 --plane 128
    python benchmarks/training_memory.py --estimate      # what `volseg describe` estimates against what is measured
    python benchmarks/training_memory.py --encoder tiny --depths 8 --plane 32 --out runs/quick    # to try it

Every cell is a process of its own that builds the default network, makes two steps on noise and measures how far its
resident memory rose. Linux only (the peak comes from ``/proc``). Minutes with the defaults.
"""

from __future__ import annotations

import argparse
import sys

from shared.arguments import integers, make_parser
from shared.measure import run_function
from shared.record import Record, origin, write_json, write_page
from shared.text import origin_text, say, shape_text, table


def main() -> int:
    """Measure every cell and write the table."""
    args = parse_arguments()
    from training.memory import MODES, SEED, SETTINGS, compare, measure

    if args.estimate:
        cells = []
        for setting in SETTINGS:
            for heap in ("returned", "reused"):
                cells.append(run_function(compare, {"setting": setting, "heap": heap}))
                say(f"{cells[-1]}")
        record = {**origin(), "seed": SEED, "estimate": True, "cells": cells}
        write_json(args.out / "estimate.json", record)
        write_page(args.out / "estimate.md", markdown(record))
        return 0
    cells = []
    for depth in args.depths:
        for mode in MODES:
            settings = {"encoder": args.encoder, "plane": args.plane, "mode": mode, "depth": depth}
            cells.append(run_function(measure, settings))
            say(f"{mode}, {depth} slices: {cells[-1]['step_mb']} MB")
    record = {**origin(), "seed": SEED, "encoder": args.encoder, "plane": args.plane, "cells": cells}
    name = f"{args.encoder}_{args.plane}"
    write_json(args.out / f"{name}.json", record)
    write_page(args.out / f"{name}.md", markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "training_memory")
    parser.add_argument("--estimate", action="store_true", help="compare the estimate with real steps, seven settings")
    parser.add_argument("--encoder", default="dinov2_s14", help="model.encoder (%(default)s)")
    parser.add_argument("--depths", type=integers, default=[8, 16, 32, 64], help="slices of the patch, multiples of 8")
    parser.add_argument("--plane", type=int, default=128, help="voxels along the sides of a slice (%(default)s)")
    return parser.parse_args()


def markdown(record: Record) -> str:
    """Return the table: a row per depth, a pair of columns per mode; or the estimates against what was measured."""
    if "estimate" in record:
        return estimate_table(record)
    cells = {(cell["depth"], cell["mode"]): cell for cell in record["cells"]}
    modes = list(dict.fromkeys(mode for _, mode in cells))
    rows = [["slices", *(title for mode in modes for title in (f"{mode}: MB (kept)", "s"))]]
    for depth in dict.fromkeys(depth for depth, _ in cells):
        row = [str(depth)]
        for mode in modes:
            cell = cells[depth, mode]
            row += [f"{cell['step_mb']} ({cell['kept_estimate_mb']})", f"{cell['seconds']:.1f}"]
        rows.append(row)
    return (
        f"# Memory of a training step, {record['encoder']}, slices of {record['plane']} x {record['plane']}\n\n"
        f"{table(rows)}\n\n"
        "MB: rise of the process's resident memory above the built network with its optimizer's state, over two "
        "steps of one patch (default decoder and aggregator, token stride 8, float32). In brackets: the memory that "
        "`volseg describe` estimates for the activations kept for the backward pass. s: seconds per step. Each cell in "
        f"its own process. {origin_text(record)}, torch {record['versions']['torch']}: "
        f"`{' '.join(record['command'])}`\n"
    )


def estimate_table(record: Record) -> str:
    """Return the table of the estimates: a row per setting."""
    cells = {(cell["setting"], cell["heap"]): cell for cell in record["cells"]}
    rows = [
        ["setting", "patches", "estimate: MB", "returned: MB", "of estimate", "s", "reused: MB", "of estimate", "s"]
    ]
    for setting in dict.fromkeys(setting for setting, _ in cells):
        cell = cells[setting, "returned"]
        row = [setting, f"{cell['batch']} of {shape_text(cell['patch'])}", str(cell["estimate_mb"])]
        for heap in ("returned", "reused"):
            cell = cells[setting, heap]
            measured = cell["measured_mb"]
            row += [str(measured), f"{measured / cell['estimate_mb']:.2f}", f"{cell['seconds']:.1f}"]
        rows.append(row)
    libraries = [cell["libraries_mb"] for cell in record["cells"]]
    return (
        f"# Estimated and measured memory of a training step\n\n{table(rows)}\n\n"
        "Estimate: what `volseg describe` prints. MB: peak of the process's resident memory over two steps, less that "
        f"of Python and libraries after a step of a small network ({min(libraries)} to {max(libraries)} MB). Returned: "
        "the heap gives each freed block of a megabyte back, so that memory follows the tensors. Reused: it keeps all, "
        "as in `volseg train` where memory is ample. s: seconds per step, on a machine with other work. Each cell in "
        "its own process. "
        f"{origin_text(record)}, torch {record['versions']['torch']}: `{' '.join(record['command'])}`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
