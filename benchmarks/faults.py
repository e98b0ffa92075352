"""Kills, flipped bits, full disks and two processes at once: what volseg promises in docs/reliability.md.

    python benchmarks/faults.py                                        # every part with its full count: an hour
    python benchmarks/faults.py --parts bitflips --count 200           # one part; the others' results are kept
    python benchmarks/faults.py --quick                                # a few of each; writes to runs/quick

Parts: ``kill-train`` and ``kill-predict`` (SIGKILL at random moments, started again until finished), ``bitflips`` (one
bit in checkpoints and cached arrays), ``full-disk`` (on a small tmpfs; mounting it needs root) and ``two-at-once``.
Damaged files have a script of their own, ``fuzz.py``. The volseg on ``PYTHONPATH`` is measured. The exit code is 1 if a
trial failed. Linux only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from shared.arguments import add_quick, check_choices, make_parser, use_quick_folder, use_threads, words
from shared.record import commit_of, origin, write_json, write_page
from shared.text import say

COUNTS = {
    "kill-train": 100,
    "kill-predict": 100,
    "bitflips": 100,
    "full-disk": 20,
    "two-at-once": 10,
}
QUICK = {"kill-train": 2, "kill-predict": 4, "bitflips": 6, "full-disk": 4, "two-at-once": 1}


def main() -> int:
    """Run the parts and write the table."""
    args = parse_arguments()
    use_threads(1)
    from trials.bitflips import bitflips
    from trials.full_disk import full_disk
    from trials.kills import kill_predict, kill_train
    from trials.processes import SOURCE
    from trials.tables import write_tables
    from trials.two_at_once import two_at_once

    measure = {
        "kill-train": kill_train,
        "kill-predict": kill_predict,
        "bitflips": bitflips,
        "full-disk": full_disk,
        "two-at-once": two_at_once,
    }
    failed = 0
    for part in args.parts:
        count = args.count or (QUICK if args.quick else COUNTS)[part]
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="faults_", dir=args.work) as work:
            result = measure[part](Path(work), count, args.seed)
        seconds = round(time.perf_counter() - started, 1)
        settings = {"name": args.name, "count": count, "seed": args.seed, "measured commit": commit_of(SOURCE)}
        record = {"part": part, **origin(), "seconds": seconds, "settings": settings, "result": result}
        write_json(args.out / f"{args.name}_{part}.json", record)
        say(f"{part}: {result['failed']} of {result['trials']} failed, {seconds} s")
        failed += result["failed"]
    write_page(args.out / "README.md", write_tables(args.out))
    return int(failed > 0)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "faults")
    parser.add_argument("--parts", type=words, default=list(COUNTS), help=", ".join(COUNTS))
    parser.add_argument("--count", type=int, help="trials of each part (" + ", ".join(map(str, COUNTS.values())) + ")")
    parser.add_argument("--seed", type=int, default=0, help="of moments, damage and sizes (%(default)s)")
    parser.add_argument("--name", default="now", help="beginning of the records' names (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder for temporary files (the system's)")
    add_quick(parser)
    args = parser.parse_args()
    check_choices(parser, "--parts", args.parts, COUNTS)
    use_quick_folder(args, "faults")
    return args


if __name__ == "__main__":
    sys.exit(main())
