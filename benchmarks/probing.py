"""What frozen features know of the place of a slice: lower, middle or upper third of the scan, by ``volseg probe``.

    python benchmarks/probing.py --data CHAOS_MR --encoders medsam_lite:medsam_lite,medsam_lite:random

The first scans of ``imagesTr`` are taken by name, and of each every third slice; five folds by scan.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import volseg
from shared.arguments import add_threads, make_parser, use_threads, words
from shared.record import Record, origin, write_json, write_page
from shared.text import origin_text
from volseg.io.cases import find_volumes
from volseg.io.volumes import read_grid, volume_stem

THIRDS = ("lower", "middle", "upper")


def main() -> None:
    """Probe each encoder, and write the record and the table."""
    args = parse_arguments()
    use_threads(args.threads)
    files = find_volumes(args.data / "imagesTr")[: args.scans]
    results = {}
    with tempfile.TemporaryDirectory(prefix="probing_") as work:
        scans, labels = Path(work) / "scans.txt", Path(work) / "labels.csv"
        scans.write_text("".join(f"{file.resolve()}\n" for file in files))
        labels.write_text("\n".join(["case,slice,label", *(row for file in files for row in rows(file, args.every))]))
        for name in args.encoders:
            encoder, _, weights = name.partition(":")
            overrides = [f"model.encoder={encoder}", f"model.weights={weights}", "device=cpu", "data.workers=0"]
            start, cpu_start = time.perf_counter(), time.process_time()
            result = volseg.probe(scans, labels, Path(work) / "out", overrides=overrides)
            times = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
            summary = {key: value for key, value in result.summary.items() if key != "labels"}
            results[name] = {**{key: round(value, 1) for key, value in times.items()}, **summary, "table": result.table}
    record: Record = {**origin(), "data": args.data.name, "scans": [file.name for file in files]}
    record |= {"every": args.every, "results": results}
    write_json(args.out / f"{args.data.name}.json", record)
    write_page(args.out / f"{args.data.name}.md", markdown(record))


def markdown(record: Record) -> str:
    """Return the page of a record: a table for each encoder."""
    title = f"# Thirds of {record['data']}\n\n`{' '.join(record['command'])}`"
    tables = [
        f"**{name}** ({one['cpu_seconds']} s of processor)\n\n{one['table']}" for name, one in record["results"].items()
    ]
    return "\n\n".join([title, *tables, origin_text(record)]) + "\n"


def rows(file: Path, every: int) -> list[str]:
    """Return a row of labels for each used slice of a scan whose last axis goes from inferior to superior."""
    grid = read_grid(file)
    if grid.orientation[2] != "S":
        raise SystemExit(f"{file}: the last axis does not go from inferior to superior")
    count = grid.shape[2]
    name = volume_stem(file)
    return [f"{name},{index},{THIRDS[3 * index // count]}" for index in range(every // 2, count, every)]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "probe")
    parser.add_argument("--data", type=Path, required=True, help="data set with imagesTr")
    parser.add_argument("--scans", type=int, default=8, help="scans (%(default)s)")
    parser.add_argument("--every", type=int, default=3, help="slices per used slice (%(default)s)")
    parser.add_argument("--encoders", type=words, required=True, metavar="ENCODER:WEIGHTS,...", help="what is probed")
    add_threads(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
