"""Samples per second of a training with one and with several processes of torchrun, each with one thread.

    python benchmarks/processes.py                          # phantoms, the configuration demo, 1 and 2 processes
    python benchmarks/processes.py --data DATASET --processes 1 4 device=cuda train.batch_size=8

The batch of all processes together is the same. The numbers of processes take turns; the ratio is the median over the
rounds. The first steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from shared.arguments import make_parser
from shared.record import ROOT, Record, origin, write_json, write_page
from shared.text import say, table

LOG_EVERY = 20
"""Steps between lines of ``metrics.jsonl``; the first line ends the steps that are not counted."""


def main() -> int:
    """Measure and write the table."""
    args = parse_arguments()
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            args.data = Path(folder) / "phantoms"
            _run("-m", "volseg", "phantom", str(args.data), "--train", "4", "--test", "0")
        for number in range(args.rounds):
            rounds.append({})
            for processes in args.processes:
                run = Path(folder) / f"round_{number}_of_{processes}"
                rounds[-1][str(processes)] = samples_per_s(args, processes, run)
                say(f"{processes} processes: {rounds[-1][str(processes)]:.2f} samples/s")
    record = {**origin(), "settings": args.settings, "steps": args.steps, "samples_per_s": rounds}
    record["load"] = os.getloadavg()
    write_json(args.out / "processes.json", record)
    write_page(args.out / "README.md", markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "processes")
    parser.add_argument("--config", default="demo", help="settings (%(default)s)")
    parser.add_argument("--data", type=Path, help="data set (default: generated phantoms)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="counted steps, in whole 20s (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings")
    return parser.parse_args()


def samples_per_s(args: argparse.Namespace, processes: int, folder: Path) -> float:
    """Train and return the samples per second between two lines of the log."""
    settings = [f"data.root={args.data}", f"output={folder}", f"train.max_steps={LOG_EVERY + args.steps}"]
    settings += ["data.fold=all", "data.workers=0", "device=cpu", "precision=32", *args.settings]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    _run(*(launcher if processes > 1 else []), "-m", "volseg", "train", "--config", str(args.config), *settings)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = rows[0], rows[-1]
    batch = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["batch_size"]
    return float(batch * (last["step"] - first["step"]) / (last["elapsed_s"] - first["elapsed_s"]))


def markdown(record: Record) -> str:
    """Return the table: a row per number of processes."""
    rounds = record["samples_per_s"]
    first, rows = next(iter(rounds[0])), [["processes", "samples/s, each round", "to the first"]]
    for processes in rounds[0]:
        ratio = statistics.median(one[processes] / one[first] for one in rounds)
        rows.append([processes, ", ".join(f"{one[processes]:.2f}" for one in rounds), f"{ratio:.2f}"])
    machine, load = record["hardware"], ", ".join(f"{number:.1f}" for number in record["load"])
    return (
        f"# Training in several processes\n\n{table(rows)}\n\nMedian ratio of the rounds, in which the numbers of "
        f"processes take turns; {record['steps']} steps each, one thread per process, float32. {machine['cpu']}, "
        f"{record['cores']} cores; load averages at the end (1, 5, 15 minutes): {load}, so other programs may have "
        f"shared the cores. Settings: {' '.join(record['settings']) or 'none'}. {record['date'][:10]}, commit "
        f"{str(record['commit'])[:10]}.\n"
    )


def _run(*arguments: str) -> None:
    """Run Python with one thread; a failure ends the measurement."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    sys.exit(main())
