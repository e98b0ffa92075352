"""Damaged files through the functions that read them: each is read, or refused with an error that names the file.

    python benchmarks/fuzz.py                        # 20,000 mutants of scans, models, checkpoints and documents
    python benchmarks/fuzz.py --count 2000 --seed 1  # others
    python benchmarks/fuzz.py --only 1234            # one mutant again, by its seed, with the traceback
    python benchmarks/fuzz.py --quick                # 300; writes to runs/quick

A mutant is a file with damaged bytes or with damaged values of its header or document, determined by its seed. It is
read in a process with a limit of memory. Another exception, a process that dies, more than 10 s or more than 256 MiB is
a failure. The volseg on ``PYTHONPATH`` is measured. The exit code is 1 if a mutant failed. Linux only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from shared.arguments import add_quick, make_parser, use_quick_folder, use_threads
from shared.record import commit_of, origin, write_json, write_page
from shared.text import say

COUNT, QUICK = 20_000, 300


def main() -> int:
    """Read the mutants and write the table."""
    args = parse_arguments()
    use_threads(1)
    from trials.mutants import mutants, one_mutant
    from trials.processes import SOURCE
    from trials.tables import write_mutants

    if args.only is not None:
        return one_mutant(args.only)
    count = args.count or (QUICK if args.quick else COUNT)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz_", dir=args.work) as work:
        result = mutants(Path(work), count, args.seed)
    seconds = round(time.perf_counter() - started, 1)
    settings = {"name": args.name, "count": count, "seed": args.seed, "measured commit": commit_of(SOURCE)}
    record = {"part": "fuzz", **origin(), "seconds": seconds, "settings": settings, "result": result}
    write_json(args.out / f"{args.name}.json", record)
    say(f"{result['failed']} of {result['trials']} failed, {seconds} s")
    write_page(args.out / "README.md", write_mutants(args.out))
    return int(result["failed"] > 0)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "fuzz")
    parser.add_argument("--count", type=int, help=f"mutants ({COUNT})")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other mutants (%(default)s)")
    parser.add_argument("--only", type=int, metavar="SEED", help="make, keep and read one mutant, and say what happens")
    parser.add_argument("--name", default="now", help="name of the record (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder for temporary files (the system's)")
    add_quick(parser)
    args = parser.parse_args()
    use_quick_folder(args, "fuzz")
    return args


if __name__ == "__main__":
    sys.exit(main())
