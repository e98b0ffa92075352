"""Time of a training step, part by part, beside another commit.

    python benchmarks/step.py                                       # this source, the configuration cpu
    python benchmarks/step.py --before ../old --pairs 5             # beside a checkout of an older commit
    python benchmarks/step.py --label identity model.encoder=identity
    python benchmarks/step.py --pairs 1 --steps 1 --patch 8,16,16 --out runs/quick       # to check that it works

A whole step (network, loss, backward, clipping, optimizer, average of the weights) on a batch of noise of the size of
hippocampus patches, and every part alone, forward and backward, on the inputs that it gets in the network. The sources
take turns, each in processes of its own; the ratio is the median over neighbouring runs. About a minute per pair.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

from shared.arguments import make_parser, size
from shared.measure import run_function
from shared.record import ROOT, TRANSFORMER_CONFIG, Record, commit_of, origin, write_json, write_page
from shared.text import say, shape_text, table

PARTS = ("encoder", "aggregator", "decoder", "whole step")


def main() -> int:
    """Measure and write the table."""
    args = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes that measure
    from training.step_parts import measure

    sources = {"before": args.before.resolve(), "after": ROOT} if args.before else {"after": ROOT}
    settings = {"config": str(args.config.resolve()), "patch": args.patch, "steps": args.steps}
    settings["settings"] = args.settings
    runs: dict[str, list[Record]] = {name: [] for name in sources}
    for _ in range(args.pairs):
        for name, source in sources.items():
            runs[name].append(run_function(measure, settings, source=source))
            say(f"{name}: {runs[name][-1]['seconds']}")
    record = {**origin(), "threads": args.threads, "settings": args.settings, "runs": runs}
    record["commits"] = {name: commit_of(source) for name, source in sources.items()}
    name = args.label or "step"
    write_json(args.out / f"{name}.json", record)
    write_page(args.out / ("README.md" if name == "step" else f"{name}.md"), markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "step")
    parser.add_argument("--config", default=TRANSFORMER_CONFIG, type=Path, help="settings (%(default)s)")
    parser.add_argument("--patch", type=size, default=(40, 56, 40), help="D,H,W of the patch, 1 mm voxels (40,56,40)")
    parser.add_argument("--before", type=Path, help="checkout of an older commit")
    parser.add_argument("--pairs", type=int, default=5, help="processes of each source, taking turns (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="measured in each process (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads (%(default)s)")
    parser.add_argument("--label", help="name of the result's files")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings")
    return parser.parse_args()


def markdown(record: Record) -> str:
    """Return the table: a row per part."""
    runs, names = record["runs"], list(record["runs"])
    ratio = ["before / after"] if len(names) > 1 else []
    rows = [["part", *(f"{name}, s" for name in names), *ratio]]
    for part in (part for part in PARTS if part in runs[names[0]][0]["seconds"]):
        seconds = {name: [run["seconds"][part] for run in runs[name]] for name in names}
        rows.append([part, *(f"{statistics.median(seconds[name]):.3f}" for name in names)])
        if ratio:
            pairs = zip(seconds["before"], seconds["after"], strict=True)
            rows[-1].append(f"{statistics.median(one / other for one, other in pairs):.2f}")
    precisions = dict.fromkeys(run["precision"] for of_source in runs.values() for run in of_source)
    first, machine = runs[names[-1]][0], record["hardware"]
    commits = ", ".join(f"{name} {str(commit)[:10]}" for name, commit in record["commits"].items())
    return (
        f"# A training step\n\n{table(rows)}\n\nThe parts alone, forward and backward; batch "
        f"{first['batch']} of {shape_text(first['patch'])} voxels, {first['parameters']:,} parameters, "
        f"{' and '.join(precisions)}. {len(runs[names[-1]])} processes of each source, taking turns; medians, and the "
        f"median ratio of neighbouring runs. {machine['cpu']}, threads: {record['threads']}, torch "
        f"{record['versions']['torch']}, {record['date'][:10]}; commits: {commits}; settings: "
        f"{' '.join(record['settings']) or 'of the configuration'}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
