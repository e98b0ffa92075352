"""Training as it runs, loader included: samples per second, the share of kernels, the wait for batches, memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from torch.profiler import ProfilerActivity, profile

from card.device import device_seconds, loader_workers, peak_memory_mb, reset_peak_memory, share, synchronize
from card.made import write_dataset
from shared.record import Record
from training.runs import NO_VALIDATION
from volseg.config.load import load_config
from volseg.device import full_float32
from volseg.training import steps as run_of_steps
from volseg.training.experiment import prepare
from volseg.training.loop import train
from volseg.training.memory import precision_text, step_memory

NETWORKS = {
    "tiny": ["model.encoder=tiny"],
    "identity": ["model.encoder=identity"],
    "dinov2_s14": ["model.encoder=dinov2_s14"],
    "dynunet": ["model.baseline=dynunet"],
}
SIZES: dict[str, tuple[list[str], int, tuple[int, int, int], int, int, int, float]] = {
    "full": (list(NETWORKS), 60, (40, 56, 40), 9, 30, 120, 9),
    "quick": (["tiny", "identity"], 30, (40, 56, 40), 9, 20, 40, 3),
    "tiny": (["tiny", "identity"], 6, (16, 16, 16), 2, 1, 3, 5),
}
"""Networks, made cases, patch, batch, steps that are not measured, measured ones, and their most seconds."""
PROFILED_STEPS = 10


class Enough(Exception):
    """Raised inside a training run to end it without a checkpoint."""


def rows(device: str, size: str, data: str | None) -> Iterator[Record]:
    """Yield a row for each network, on a given data set or a made one of the same sizes."""
    networks, cases, patch, batch, *_ = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        root = data or str(write_dataset(Path(folder) / "data", cases))
        workers = loader_workers() if size != "tiny" else 0
        shared = [f"data.root={root}", f"data.cache={folder}/cache", f"device={device}", f"data.workers={workers}"]
        shared += [f"train.batch_size={batch}", f"plan.patch_size={list(patch)}", "plan.token_stride=8"]
        shared += ["model.weights=random", "train.max_steps=1000000", "data.fold=all", NO_VALIDATION]
        for name in networks:
            settings = [*shared, *NETWORKS[name], f"output={folder}/{name}"]
            yield {"network": name, "patch": list(patch), "batch": batch, "workers": workers, **measure(settings, size)}


def measure(settings: list[str], size: str) -> Record:
    """Train until enough steps were measured; the same loop as that of ``volseg train``."""
    config = load_config(None, settings)
    with prepare(config) as experiment:
        watch = Watch(config.device, size)
        with watch.waits(), full_float32(), suppress(Enough):
            train(experiment, watch.after_step)
        estimate = step_memory(experiment.config, experiment.plan, experiment.batch_size).total
        measured = watch.result(experiment.batch_size)
    return {"precision": precision_text(config).split(" on ")[0], **measured, "estimate_mb": round(estimate / 1e6, 1)}


class Watch:
    """Times the steps of a run from its progress, then profiles some more, then ends it."""

    def __init__(self, device: str, size: str) -> None:
        *_, self._warm_up, self._steps, self._most_s = SIZES[size]
        self._device = device
        self._waited_s = self._waited_before_s = 0.0
        self._first = self._last = 0.0
        self._counted = 0
        self._profiler: profile | None = None
        self._profiled = 0

    def waits(self) -> Any:
        """Return a context in which the time that the run waits for batches is measured."""
        return mock.patch.object(run_of_steps, "batches", self._timed(run_of_steps.batches))

    def after_step(self, stage: str, step: int, total: int | None) -> None:
        """Take the time; raise `Enough` in the end."""
        if stage != "train" or step < self._warm_up:
            return
        if step == self._warm_up:
            reset_peak_memory(self._device)
            synchronize(self._device)
            self._first, self._waited_before_s = time.perf_counter(), self._waited_s
        elif self._profiler is None:
            self._counted += 1
            if self._counted >= self._steps or time.perf_counter() - self._first > self._most_s:
                self._end_of_timed_steps()
        else:
            self._profiled += 1
            if self._profiled == PROFILED_STEPS:
                synchronize(self._device)
                self._profiler.__exit__(None, None, None)
                raise Enough

    def result(self, batch: int) -> Record:
        """Return samples per second, and the shares of the time that kernels and waiting for batches take."""
        step_s = (self._last - self._first) / self._counted
        kernel_s = None if self._profiler is None else device_seconds(self._profiler) / PROFILED_STEPS
        return {
            "samples_per_s": round(batch / step_s, 1),
            "step_ms": round(1e3 * step_s, 2),
            "kernel_ms": None if kernel_s is None else round(1e3 * kernel_s, 2),
            "busy": share(kernel_s, step_s),
            "waiting": share(self._waited_s, self._last - self._first),
            "steps": self._counted,
            "peak_device_mb": self._peak_mb,
        }

    def _end_of_timed_steps(self) -> None:
        """Take the time of all steps; go on with the profiler on a GPU, otherwise end the run."""
        synchronize(self._device)
        self._last = time.perf_counter()
        self._waited_s -= self._waited_before_s
        self._peak_mb = peak_memory_mb(self._device)
        if not self._device.startswith("cuda"):
            raise Enough
        self._profiler = profile(activities=[ProfilerActivity.CUDA])
        self._profiler.__enter__()

    def _timed(self, batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Return the same iterator over batches, whose time counts while steps are timed."""

        def timed(*arguments: Any) -> Iterator[Any]:
            stream = batches(*arguments)
            while True:
                started = time.perf_counter()
                batch = next(stream)
                if self._profiler is None:
                    self._waited_s += time.perf_counter() - started
                yield batch

        return timed
