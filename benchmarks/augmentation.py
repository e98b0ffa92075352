"""Time of each random transform of training patches on a CPU, beside TorchIO's.

    pip install "torchio<2"                           # volseg itself does not need it
    python benchmarks/augmentation.py --repeats 40
    python benchmarks/augmentation.py --repeats 1 --out runs/quick              # to check that it works

Both take turns on the same patch with the same parameters, one thread each by default. Ratios are medians over the
pairs, which other load on the machine affects alike. A minute.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

from shared.arguments import make_parser, use_threads
from shared.record import Record, origin, write_json, write_page
from shared.text import origin_text, shape_text

EXPECTED = {"affine": 0.5, "noise": 0.15, "blur": 0.1, "gamma": 0.3, "bias_field": 0.1}
"""Default probabilities."""


def main() -> int:
    """Measure and write the table."""
    args = parse_arguments()
    use_threads(args.threads)
    from training.augmentation_pairs import PATCHES, measure

    patches = {name: {"voxels": list(PATCHES[name][0]), "transforms": measure(name, args.repeats)} for name in PATCHES}
    record = {**origin(), "repeats": args.repeats, "patches": patches}
    write_json(args.out / "augmentation.json", record)
    write_page(args.out / "README.md", markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "augmentation")
    parser.add_argument("--repeats", type=int, default=40, help="of each transform (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of both (%(default)s)")
    return parser.parse_args()


def markdown(record: Record) -> str:
    """Return the table; the last row of a patch is the sum at the default probabilities."""
    lines = [
        "# Augmentation",
        "",
        "| patch | transform | volseg, ms | TorchIO, ms | volseg / TorchIO | largest difference |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, patch in record["patches"].items():
        label = f"{name}, {shape_text(patch['voxels'])}"
        totals = [0.0, 0.0]
        for transform, result in patch["transforms"].items():
            times = [median(result[key]) * 1000 for key in ("volseg", "torchio")]
            ratio = median(ours / other for ours, other in zip(result["volseg"], result["torchio"], strict=True))
            totals = [total + EXPECTED[transform] * ms for total, ms in zip(totals, times, strict=True)]
            difference = "" if transform == "noise" else f"{result['difference']:.1e}"
            lines.append(f"| {label} | {transform} | {times[0]:.2f} | {times[1]:.2f} | {ratio:.2f} | {difference} |")
        lines.append(
            f"| {label} | mean of a sample | {totals[0]:.2f} | {totals[1]:.2f} | {totals[0] / totals[1]:.2f} | |"
        )
    moved = [patch["transforms"]["affine"] for patch in record["patches"].values()]
    labels, edges = (max(result[key] for result in moved) for key in ("labels", "edges"))
    versions = f"torch {record['versions']['torch']}, TorchIO {record['versions'].get('torchio', '?')}"
    lines += [
        "",
        f"Medians of the processor time of {record['repeats']} pairs, on noise with one channel, while the machine had "
        "other load; the bias field is beside numpy's. Thick slices turn in plane only. The mean of a sample is at the "
        f"default probabilities for MRI, without mirroring. At most {labels:.1e} of the labels differ, where "
        f"a place is as near to one voxel as to another, and {edges:.1e} of the voxels come from inside the patch for "
        f"one and from outside for the other. {origin_text(record)}, {versions}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
