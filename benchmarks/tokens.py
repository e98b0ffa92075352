"""What the token cache saves: training samples a second with and without it, the time to build it, and its size.

    python benchmarks/tokens.py --data DIR                                    # DINOv2 S/14 frozen, random weights
    python benchmarks/tokens.py --data DIR plan.token_stride=4                # with other settings
    python benchmarks/tokens.py --data DIR --pairs 1 --steps 1 --cases 1      # to see that it works

    python benchmarks/tokens.py --data DIR --label float32 precision=32       # as on a CPU without bf16

All arms train in this process with the same threads, in turn, a few steps at a time; samples are made in it too
(``data.workers=0``), so that their cost is counted. The third arm has no encoder at all: what is left is the stem and
the decoder, which no cache can save. Results: ``benchmarks/results/tokens[_<label>]`` ``.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from record import origin, table
from torch.utils.flop_counter import FlopCounterMode

from volseg.config.load import load_config
from volseg.config.schema import Config
from volseg.device import choose_device, training_dtype
from volseg.training.experiment import Experiment, prepare
from volseg.training.samples import batches, training_samples
from volseg.training.state import TrainingState

ROOT = Path(__file__).resolve().parents[1]
FIXED = ["model.encoder=dinov2_s14", "model.adaptation=frozen", "model.weights=random", "data.workers=0", "device=cpu"]
TARGET = 4.0
ARMS = ("without", "with", "no encoder")


@dataclass
class Arm:
    """One way of training, and what was measured of it.

    Attributes:
        state: Network and optimizer.
        samples: Its endless batches.
        data_s: Seconds to make the samples of a round, for each round.
        step_s: Seconds of the optimizer steps of a round.
    """

    state: TrainingState
    samples: Iterator[dict[str, Any]]
    data_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)

    def run(self, steps: int, number: int) -> tuple[float, float]:
        """Seconds of making the samples and of the steps."""
        data_s = step_s = 0.0
        for _ in range(steps):
            started = time.perf_counter()
            batch = next(self.samples)
            made = time.perf_counter()
            self.state.step(batch, number, spent=0.5)
            data_s, step_s = data_s + made - started, step_s + time.perf_counter() - made
        return data_s, step_s


def main() -> int:
    """Measure and write the tables."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        overrides = [*FIXED, f"data.root={args.data}", f"data.shots={args.cases}", f"output={scratch}/run"]
        config = load_config(args.config, [*overrides, "train.max_steps=1000000", *args.overrides])
        experiment = prepare(config)
        arms, build = make_arms(experiment)
        measure(arms, args.pairs, args.steps)
        record = {**origin(), **describe(experiment), "build": build, **results(arms, config, args.steps)}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / "_".join(filter(None, ("tokens", args.label)))
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    print(markdown(record))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--config", default=ROOT / "configs" / "hippocampus.yaml", help="settings (%(default)s)")
    parser.add_argument("--pairs", type=int, default=7, help="rounds of all arms (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of an arm in a round (%(default)s)")
    parser.add_argument("--cases", type=int, default=8, help="training cases to build the cache of (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    parser.add_argument("--scratch", help="folder for the run and its cache, removed at the end")
    parser.add_argument("--label", help="of the results' files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings")
    return parser.parse_args()


def make_arms(experiment: Experiment) -> tuple[dict[str, Arm], dict[str, Any]]:
    """The arms, and what building the cache took."""
    config = experiment.config
    cached = replace(config, data=replace(config.data, cache_tokens=True))
    control = replace(config, model=replace(config.model, encoder="identity"))
    arms, build = {}, {}
    for name, changed in zip(ARMS, (config, cached, control), strict=True):
        changed_experiment = replace(experiment, config=changed)
        state = TrainingState(changed, experiment.plan)
        started = time.perf_counter()
        samples = training_samples(changed_experiment, state.model, None)
        if changed.data.cache_tokens:
            build = cache_record(samples, time.perf_counter() - started)
        arms[name] = Arm(state, batches(samples, changed, 0))
    return arms, build


def cache_record(samples: Any, seconds: float) -> dict[str, Any]:
    """Time and size of the cache that was just built."""
    folders = [variant.folder for variants in samples.cases for variant in variants]
    size = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    cases, shape = len(samples.cases), samples.cases[0][0].tokens.shape
    return {
        "cases": cases,
        "variants": len(samples.cases[0]),
        "seconds": round(seconds, 2),
        "seconds_per_case_and_variant": round(seconds / len(folders), 3),
        "megabytes_per_case_and_variant": round(size / len(folders) / 1e6, 2),
        "tokens_of_the_first_case": dict(zip(("windows", "slices", "taps", "rows", "columns", "width"), shape)),  # noqa: B905
    }


def measure(arms: dict[str, Arm], rounds: int, steps: int) -> None:
    """Warm every arm up, then time all of them in turn, every other round in reverse."""
    for arm in arms.values():
        arm.run(2, 0)
    for number in range(rounds):
        order = list(arms.values()) if number % 2 == 0 else list(arms.values())[::-1]
        for arm in order:
            data_s, step_s = arm.run(steps, number + 1)
            arm.data_s.append(data_s)
            arm.step_s.append(step_s)


def results(arms: dict[str, Arm], config: Config, steps: int) -> dict[str, Any]:
    """Samples a second, seconds by part, arithmetic, and the ratio of each round."""
    samples = steps * config.train.batch_size
    seconds = {name: [a + b for a, b in zip(arm.data_s, arm.step_s, strict=True)] for name, arm in arms.items()}
    rows = {}
    for name, arm in arms.items():
        rows[name] = {
            "samples_per_s": [round(samples / spent, 4) for spent in seconds[name]],
            "data_s_per_sample": round(statistics.median(arm.data_s) / samples, 4),
            "step_s_per_sample": round(statistics.median(arm.step_s) / samples, 4),
            "gflop_per_sample": round(gflop(arm) / config.train.batch_size, 2),
        }
    ratios = [without / cached for without, cached in zip(seconds["without"], seconds["with"], strict=True)]
    ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    ratio = {key: round(value, 3) for key, value in ratio.items()}
    return {"steps": steps, "arms": rows, "ratio": ratio, "ratios": [round(value, 3) for value in ratios]}


def gflop(arm: Arm) -> float:
    """Convolutions and matrix products of one step, 10^9 operations; a multiplication and its addition are two."""
    with FlopCounterMode(display=False) as counter:
        arm.run(1, 0)
    return float(counter.get_total_flops() / 1e9)


def describe(experiment: Experiment) -> dict[str, Any]:
    """The settings that the figures depend on."""
    config, plan = experiment.config, experiment.plan
    return {
        "dataset": plan.dataset,
        "patch_size": list(plan.patch_size),
        "token_stride": plan.token_stride,
        "batch_size": config.train.batch_size,
        "features": config.model.features,
        "aggregator": config.model.aggregator,
        "encoder": config.model.encoder,
        "workers": config.data.workers,
        "precision": str(training_dtype(config.precision, choose_device(config.device))).removeprefix("torch."),
    }


def markdown(record: dict[str, Any]) -> str:
    """The table and its reading."""
    ratio, build, arms = record["ratio"], record["build"], record["arms"]
    lines = [
        f"# Token cache: {record['encoder']}, frozen, random weights, {record['dataset']}",
        "",
    ]
    rows = [["token cache", "samples/s (median)", "s/sample: data", "s/sample: step", "GFLOP/sample"]]
    for name, row in arms.items():
        speed = statistics.median(row["samples_per_s"])
        parts = (row["data_s_per_sample"], row["step_s_per_sample"], row["gflop_per_sample"])
        rows.append([name, f"{speed:.3f}", *map(str, parts)])
    arithmetic = arms["without"]["gflop_per_sample"] / arms["with"]["gflop_per_sample"]
    lines += [
        table(rows),
        "",
        f"With over without: {ratio['median']:.2f} (median of {len(record['ratios'])} rounds of {record['steps']}"
        f" steps, {ratio['min']:.2f} to {ratio['max']:.2f}; target {TARGET:g}). By arithmetic alone: {arithmetic:.2f}."
        " `no encoder` is the stem and decoder alone (`model.encoder=identity`), which no cache can save.",
        "",
        f"Building: {build['seconds_per_case_and_variant']} s and {build['megabytes_per_case_and_variant']} MB a case"
        f" and variant ({build['cases']} cases x {build['variants']} variants, {build['seconds']} s).",
        "",
        f"Patch {record['patch_size']}, token stride {record['token_stride']}, batch {record['batch_size']},"
        f" features {record['features']}, aggregator {record['aggregator']}, workers {record['workers']},"
        f" {record['precision']};"
        f" {record['hardware']['cpu']}, {record['hardware']['threads']} threads, torch {record['versions']['torch']};"
        f" tokens read from the page cache. {record['date']}, commit {record['commit']}:"
        f" `{' '.join(record['command'])}`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
