"""Faults planted into a copy of a data set, and what ``volseg plan --check-only`` finds; its time and memory.

    python benchmarks/dataset_checks.py --data Task04_Hippocampus

The data set has the layout of the Decathlon, one channel and the classes 1 and 2. It is checked as it is, with one
process, then a copy with a fault of each kind in ``trials/planted_faults.py``. The exit code is 1 if a planted fault is
not found, something else is, or the data set itself has errors.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from shared.arguments import make_parser, use_threads
from shared.record import origin, write_json
from shared.text import say


def main() -> int:
    """Check the data set and its copy, and write the record."""
    args = parse_arguments()
    use_threads(1)
    from trials.planted_faults import compare, plant

    whole = measure(args.data)
    with tempfile.TemporaryDirectory(prefix="dataset_checks_") as work:
        copy = Path(work) / args.data.name
        shutil.copytree(args.data, copy, copy_function=shutil.copyfile)
        planted = plant(copy)
        damaged = measure(copy)
        result = compare(planted, damaged["findings"])
    for name, one in (("as it is", whole), (f"with {len(planted)} faults", damaged)):
        seconds = f"{one['seconds']:.1f} s ({one['cpu_seconds']:.1f} s of processor)"
        found = f"{len(one['findings'])} findings, {seconds}, {one['peak_mb']} MB"
        say(f"{args.data.name} {name}: {found}")
    say(f"missed: {', '.join(result['missed']) or 'none'}; invented: {'; '.join(result['invented']) or 'none'}")
    record = {
        **origin(),
        "data": args.data.name,
        "as it is": whole,
        "planted": list(planted),
        "found in": {key: damaged[key] for key in ("seconds", "cpu_seconds", "peak_mb")},
        **result,
    }
    write_json(args.out / f"{args.data.name}.json", record)
    errors = [finding for finding in whole["findings"] if finding["severity"] == "error"]
    return int(bool(errors or result["missed"] or result["invented"]))


def measure(data: Path) -> dict[str, Any]:
    """Return the findings of a data set, the seconds and the peak memory of a check in a process of its own."""
    from shared.measure import run_function
    from trials.planted_faults import check

    return run_function(check, {"data": str(data)})


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "dataset_checks")
    parser.add_argument("--data", type=Path, required=True, help="data set in the layout of the Decathlon")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
