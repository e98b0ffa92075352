"""Token cache: training samples per second with and without it, the time to build it, and its size.

    python benchmarks/tokens.py --data DIR                                    # DINOv2 S/14 frozen, random weights
    python benchmarks/tokens.py --data DIR plan.token_stride=4                # with other settings
    python benchmarks/tokens.py --data DIR --label float32 precision=32       # as on a CPU without bf16
    python benchmarks/tokens.py --data DIR --pairs 1 --steps 1 --cases 1      # to check that it works

All arms train in this process with the same threads, in turn, a few steps at a time; samples are made in it too
(``data.workers=0``), so that their cost is counted. The third arm has no encoder: the stem and the decoder remain,
whose time no cache can save. Minutes with the defaults.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from shared.arguments import add_threads, make_parser, use_threads
from shared.record import TRANSFORMER_CONFIG, Record, origin, write_json, write_page
from shared.text import table

FIXED = ["model.encoder=dinov2_s14", "model.adaptation=frozen", "model.weights=random", "data.workers=0", "device=cpu"]
TARGET = 4.0


def main() -> int:
    """Measure and write the tables."""
    args = parse_arguments()
    use_threads(args.threads)
    from training.token_arms import make_arms, measure, results, settings_of
    from volseg.config.load import load_config
    from volseg.training.experiment import prepare

    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        overrides = [*FIXED, f"data.root={args.data}", f"data.shots={args.cases}", f"output={scratch}/run"]
        config = load_config(args.config, [*overrides, "train.max_steps=1000000", *args.settings])
        with prepare(config) as experiment:
            arms, build = make_arms(experiment)
            measure(arms, args.pairs, args.steps)
            record = {
                **origin(),
                **settings_of(experiment),
                "build": build,
                **results(arms, experiment.config, args.steps),
            }
    write_json(args.out / f"{args.label}.json", record)
    write_page(args.out / f"{args.label}.md", markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__, "tokens")
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--config", default=TRANSFORMER_CONFIG, type=Path, help="settings (%(default)s)")
    parser.add_argument("--pairs", type=int, default=7, help="rounds of all arms (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of an arm in a round (%(default)s)")
    parser.add_argument("--cases", type=int, default=8, help="training cases to build the cache of (%(default)s)")
    add_threads(parser)
    parser.add_argument("--scratch", help="folder for the run and its cache, removed at the end")
    parser.add_argument("--label", default="tokens", help="name of the result's files (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings")
    return parser.parse_args()


def markdown(record: Record) -> str:
    """Return the table and how to read it."""
    ratio, build, arms = record["ratio"], record["build"], record["arms"]
    rows = [["token cache", "samples/s (median)", "s/sample: data", "s/sample: step", "GFLOP/sample"]]
    for name, row in arms.items():
        speed = statistics.median(row["samples_per_s"])
        parts = (row["data_s_per_sample"], row["step_s_per_sample"], row["gflop_per_sample"])
        rows.append([name, f"{speed:.3f}", *map(str, parts)])
    operations = arms["without"]["gflop_per_sample"] / arms["with"]["gflop_per_sample"]
    return (
        f"# Token cache: {record['encoder']}, frozen, random weights, {record['dataset']}\n\n{table(rows)}\n\n"
        f"With over without: {ratio['median']:.2f} (median of {len(record['ratios'])} rounds of {record['steps']} "
        f"steps, {ratio['min']:.2f} to {ratio['max']:.2f}; target {TARGET:g}). By operations alone: {operations:.2f}. "
        "`no encoder` is the stem and decoder alone (`model.encoder=identity`), whose time no cache can save.\n\n"
        f"Building: {build['seconds_per_case_and_variant']} s and {build['megabytes_per_case_and_variant']} MB per "
        f"case and variant ({build['cases']} cases x {build['variants']} variants, {build['seconds']} s).\n\n"
        f"Patch {record['patch_size']}, token stride {record['token_stride']}, batch {record['batch_size']}, "
        f"features {record['features']}, aggregator {record['aggregator']}, workers {record['workers']}, "
        f"{record['precision']}; {record['hardware']['cpu']}, threads: {record['hardware']['threads']}, torch "
        f"{record['versions']['torch']}; tokens read from the page cache. {record['date'][:10]}, commit "
        f"{record['commit'][:10]}: `{' '.join(record['command'])}`.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
