"""All figures of a GPU in one go: prediction and training beside their peers, attention, agreement with the CPU.

    python benchmarks/gpu.py                                     # under 8 minutes
    python benchmarks/gpu.py --quick                             # under 2 minutes, smaller; runs/quick/gpu
    python benchmarks/gpu.py --device cpu --quick                # tiny, to check that it works
    python benchmarks/gpu.py --data Task04_Hippocampus --parts accuracy      # two trainings, one after another

Sections: ``sliding`` (the network over a volume, beside MONAI's SlidingWindowInferer), ``scan`` (a whole CT by the
command, beside MONAI's transforms), ``steps`` (training with its loader), ``kernels`` (attention), ``masks`` (CPU
against device, bf16 against float32); and where ``--parts`` names them ``nnunet`` (the CT by nnU-Net's command, where
it is installed) and ``accuracy`` (two trainings of ``--minutes`` on ``--data``; a finished one is kept, so the command
can be repeated). Each section is a process with a time limit: one that fails is named on the page, and the others are
complete. The record is written after each section, to ``gpu.json`` and ``README.md``; with ``--parts``, to files of
their names. Weights are random, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from card import accuracy, kernels, masks, nnunet, scan, sliding, steps
from card.sections import Rows, run_section
from card.tables import markdown
from shared.arguments import add_quick, check_choices, make_parser, use_quick_folder, words
from shared.record import Record, origin, write_json
from shared.text import say

LIMITS_S: dict[str, Mapping[str, float]] = {
    "sliding": {"full": 130, "quick": 26, "tiny": 120},
    "scan": {"full": 130, "quick": 36, "tiny": 120},
    "steps": {"full": 95, "quick": 28, "tiny": 120},
    "kernels": {"full": 35, "quick": 13, "tiny": 60},
    "masks": {"full": 50, "quick": 13, "tiny": 120},
    "nnunet": {"full": 400, "quick": 200, "tiny": 300},
}
"""Seconds after which a section is stopped."""
ACCURACY = "accuracy"
ON_REQUEST = ("nnunet", ACCURACY)
"""Sections that run where ``--parts`` names them: they would exceed the eight minutes."""
PREPARING_S = 180
"""Seconds that a training has for preparing, validation and scores, beside its minutes."""
ROWS: dict[str, Rows] = {
    "sliding": sliding.rows,
    "scan": scan.rows,
    "steps": steps.rows,
    "kernels": kernels.rows,
    "masks": masks.rows,
    "nnunet": nnunet.rows,
    ACCURACY: accuracy.rows,
}


def main() -> int:
    """Run the sections and write record and page after each; the exit code is 1 if one failed."""
    args = parse_arguments()
    size = "full" if not args.quick else "tiny" if args.device == "cpu" else "quick"
    names = args.parts or [name for name in ROWS if name not in ON_REQUEST]
    stem = "_".join(args.parts) if args.parts else "gpu"
    page = args.out / (f"{stem}.md" if args.parts else "README.md")
    record: Record = {**origin(), "device": args.device, "size": size, "sections": {}}
    for name in names:
        limit_s = limit_of(name, size, args.minutes)
        say(f"{name}, at most {limit_s:.0f} s")
        record["sections"][name] = run_section(ROWS[name], settings_of(name, size, args), limit_s)
        write_json(args.out / f"{stem}.json", record)
        page.write_text(markdown(record), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))
    return int(any(section["error"] for section in record["sections"].values()))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "gpu")
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    parser.add_argument("--data", type=Path, help="the Decathlon's hippocampus (default: made scans)")
    parser.add_argument("--parts", type=words, default=[], help=f"{', '.join(ROWS)} (all but the last two)")
    parser.add_argument("--minutes", type=float, default=5, help="of each training of accuracy (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "gpu", help="run folders (%(default)s)")
    add_quick(parser)
    args = parser.parse_args()
    check_choices(parser, "--parts", args.parts, ROWS)
    if ACCURACY in args.parts and not args.data:
        parser.error("--parts accuracy needs --data")
    use_quick_folder(args, "gpu")
    return args


def limit_of(name: str, size: str, minutes: float) -> float:
    """Return the seconds after which a section is stopped."""
    return len(accuracy.MODELS) * (60 * minutes + PREPARING_S) if name == ACCURACY else LIMITS_S[name][size]


def settings_of(name: str, size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a section's function."""
    data = str(args.data.resolve()) if args.data else None
    runs = str(args.runs.resolve() / f"{args.minutes:g}min")
    if name == ACCURACY:
        return {"device": args.device, "data": data, "minutes": args.minutes, "runs": runs}
    further = {"steps": {"data": data}, "masks": {"data": data, "runs": runs}}
    return {"device": args.device, "size": size, **further.get(name, {})}


if __name__ == "__main__":
    sys.exit(main())
