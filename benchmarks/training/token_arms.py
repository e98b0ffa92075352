"""The arms that ``tokens.py`` compares: training with stored tokens, without them, and without an encoder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from volseg.config.schema import Config
from volseg.device import choose_device, training_dtype
from volseg.training.device_samples import DeviceSamples
from volseg.training.experiment import Experiment
from volseg.training.samples import batches, training_samples
from volseg.training.state import TrainingState

ARMS = ("without", "with", "no encoder")
WARM_UP = 2


@dataclass
class Arm:
    """One way of training, and its measured times.

    Attributes:
        state: Network and optimizer.
        samples: The batches of each step, endlessly.
        data_s: Seconds of making samples, per round.
        step_s: Seconds of the optimizer steps, per round.
    """

    state: TrainingState
    samples: Iterator[list[dict[str, Any]]]
    data_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)

    def run(self, steps: int, number: int) -> tuple[float, float]:
        """Train some steps; return the seconds of making samples and of the steps."""
        data_s = step_s = 0.0
        for _ in range(steps):
            started = time.perf_counter()
            step_batches = next(self.samples)
            made = time.perf_counter()
            self.state.step(step_batches, number, spent=0.5)
            data_s, step_s = data_s + made - started, step_s + time.perf_counter() - made
        return data_s, step_s

    def gflop(self) -> float:
        """Return the convolutions and matrix products of one step, 10^9 operations; a multiply-add counts as two."""
        with FlopCounterMode(display=False) as counter:
            self.run(1, 0)
        return float(counter.get_total_flops() / 1e9)


def make_arms(experiment: Experiment) -> tuple[dict[str, Arm], dict[str, Any]]:
    """Return the arms, and the time and size of the cache."""
    config = experiment.config
    cached = replace(config, data=replace(config.data, cache_tokens=True))
    control = replace(config, model=replace(config.model, encoder="identity"))
    arms, build = {}, {}
    for name, arm_config in zip(ARMS, (config, cached, control), strict=True):
        arm_experiment = replace(experiment, config=arm_config)
        state = TrainingState(arm_config, experiment.plan)
        started = time.perf_counter()
        samples = training_samples(arm_experiment, state.model, None)
        if arm_config.data.cache_tokens:
            stored = samples.samples if isinstance(samples, DeviceSamples) else samples
            build = cache_record(stored, time.perf_counter() - started)
        arms[name] = Arm(state, batches(samples, arm_config, 0))
    return arms, build


def cache_record(samples: Any, seconds: float) -> dict[str, Any]:
    """Return time and size of a token cache that was just built."""
    folders = [variant.folder for variants in samples.cases for variant in variants]
    size = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    axes = ("windows", "slices", "taps", "rows", "columns", "width")
    return {
        "cases": len(samples.cases),
        "variants": len(samples.cases[0]),
        "seconds": round(seconds, 2),
        "seconds_per_case_and_variant": round(seconds / len(folders), 3),
        "megabytes_per_case_and_variant": round(size / len(folders) / 1e6, 2),
        "tokens_of_the_first_case": dict(zip(axes, samples.cases[0][0].tokens.shape, strict=True)),
    }


def measure(arms: dict[str, Arm], rounds: int, steps: int) -> None:
    """Warm every arm up, then time all of them in turn, every other round in reverse order."""
    for arm in arms.values():
        arm.run(WARM_UP, 0)
    for number in range(rounds):
        order = list(arms.values()) if number % 2 == 0 else list(arms.values())[::-1]
        for arm in order:
            data_s, step_s = arm.run(steps, number + 1)
            arm.data_s.append(data_s)
            arm.step_s.append(step_s)


def results(arms: dict[str, Arm], config: Config, steps: int) -> dict[str, Any]:
    """Return samples per second, seconds of data and step, operations, and the ratio of each round."""
    assert config.train.batch_size is not None  # that of an experiment
    samples = steps * config.train.batch_size * config.train.accumulate
    seconds = {name: [a + b for a, b in zip(arm.data_s, arm.step_s, strict=True)] for name, arm in arms.items()}
    rows = {}
    for name, arm in arms.items():
        rows[name] = {
            "samples_per_s": [round(samples / spent, 4) for spent in seconds[name]],
            "data_s_per_sample": round(statistics.median(arm.data_s) / samples, 4),
            "step_s_per_sample": round(statistics.median(arm.step_s) / samples, 4),
            "gflop_per_sample": round(arm.gflop() / config.train.patches_per_step, 2),
        }
    ratios = [without / cached for without, cached in zip(seconds["without"], seconds["with"], strict=True)]
    ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    ratio = {key: round(value, 3) for key, value in ratio.items()}
    return {"steps": steps, "arms": rows, "ratio": ratio, "ratios": [round(value, 3) for value in ratios]}


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that the figures depend on."""
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
