"""Time and memory of planning and preprocessing a data set, beside nnU-Net's command.

    python benchmarks/nnunet.py setup --data ../shared/data/Task04_Hippocampus   # once
    python benchmarks/preprocessing.py --data ../shared/data/Task04_Hippocampus ../shared/data/CHAOS_MR

volseg: measure and check all cases, plan, preprocess and store them, as a training does before its first step. nnU-Net:
``nnUNetv2_plan_and_preprocess -c 3d_fullres`` on the same cases, which ``volseg convert`` wrote in its layout. Both
have the same number of processes and start from files in the page cache; start-up counts. Memory is the peak over all
processes together, with shared pages counted once. Linux only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from planning.process_tree import TreeCost, cost_of_command
from prediction import nnunet_environment as nnunet
from shared.arguments import make_parser
from shared.record import BENCHMARKS, ROOT, cores, load, save, write_page
from shared.text import origin_text, say, table


def main() -> int:
    """Measure the data sets and write the table."""
    args = parse_arguments()
    for data in args.data:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="preprocessing_") as folder:
            result = measure(data.resolve(), Path(folder), args)
        settings = {"data": data.name, "processes": args.processes, "repeats": args.repeats, "cases": count(data)}
        save(args.out, data.name, settings, result, time.perf_counter() - started)
    write_page(args.out / "README.md", write_table(args.out))
    return 0


def measure(data: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and bytes of both, each run alternately."""
    import volseg

    volseg.convert(data, work / "raw" / "Dataset001_Data", workers=args.processes)
    costs: dict[str, list[TreeCost]] = {"volseg": [], "nnU-Net": []}
    for number in range(args.repeats):
        for name, run in (("volseg", run_volseg), ("nnU-Net", run_nnunet)):
            costs[name].append(run(data, work / f"{name}_{number}", work, args))
            say(f"{data.name}, {name}: {costs[name][-1].seconds:.1f} s, {costs[name][-1].peak_bytes / 1e6:.0f} MB")
            shutil.rmtree(work / f"{name}_{number}", ignore_errors=True)
    result = {
        name: {
            "seconds": statistics.median(one.seconds for one in runs),
            "peak_mb": statistics.median(one.peak_bytes for one in runs) / 1e6,
        }
        for name, runs in costs.items()
    }
    return result | {"version of nnU-Net": nnunet.installed_version(args.environment)}


def run_volseg(data: Path, target: Path, work: Path, args: argparse.Namespace) -> TreeCost:
    """Plan and preprocess with volseg."""
    script = BENCHMARKS / "planning" / "preprocess_all.py"
    command = [sys.executable, str(script), str(data), str(target), str(args.processes)]
    return cost_of_command(
        command, {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, work / "volseg.log"
    )


def run_nnunet(data: Path, target: Path, work: Path, args: argparse.Namespace) -> TreeCost:
    """Plan and preprocess with nnU-Net, in one configuration."""
    paths = {"nnUNet_raw": work / "raw", "nnUNet_preprocessed": target, "nnUNet_results": work / "results"}
    variables = nnunet.clean_environment(OMP_NUM_THREADS="1", **{key: str(path) for key, path in paths.items()})
    processes = str(args.processes)
    command = [nnunet.command(args.environment, "nnUNetv2_plan_and_preprocess"), "-d", "1", "-c", "3d_fullres"]
    return cost_of_command([*command, "-npfp", processes, "-np", processes], variables, work / "nnunet.log")


def count(data: Path) -> int:
    """Return the number of labelled cases."""
    from volseg.io.datasets import read_dataset

    return len(read_dataset(data).cases)


def write_table(folder: Path) -> str:
    """Return the page of a folder's records."""
    rows = [["data", "cases", "volseg", "nnU-Net", "time", "memory of volseg", "of nnU-Net", "memory"]]
    records = load(folder)
    for record in records:
        ours, theirs = record["result"]["volseg"], record["result"]["nnU-Net"]
        rows.append(
            [
                record["name"],
                str(record["settings"]["cases"]),
                f"{ours['seconds']:.1f} s",
                f"{theirs['seconds']:.1f} s",
                f"{ours['seconds'] / theirs['seconds']:.2f}",
                f"{ours['peak_mb']:.0f} MB",
                f"{theirs['peak_mb']:.0f} MB",
                f"{ours['peak_mb'] / theirs['peak_mb']:.2f}",
            ]
        )
    lines = [
        f"- {record['name']}: {record['settings']['processes']} processes, median of {record['settings']['repeats']}, "
        f"nnU-Net {record['result']['version of nnU-Net']}; {origin_text(record)}"
        for record in records
    ]
    intro = "Planning and preprocessing, seconds and peak memory of all processes; the ratios are volseg to nnU-Net."
    return "\n".join(["# Planning and preprocessing", "", intro, "", table(rows), "", *lines, ""])


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "preprocessing")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data sets")
    parser.add_argument("--processes", type=int, default=cores(), help="processes of each (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts (%(default)s)")
    parser.add_argument("--environment", type=Path, default=nnunet.FOLDER, help="of nnunet.py (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
