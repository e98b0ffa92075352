"""The warning before a run that may not fit, and the precision that is counted."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.made.plans import StubPlan
from volseg.config.schema import Config, ModelConfig, TrainConfig
from volseg.errors import ConfigError
from volseg.planning.settings import PlanSettings
from volseg.training import memory
from volseg.training.ranks import ALONE, Ranks

CONFIG = Config(
    device="cpu",
    precision="32",
    model=ModelConfig(encoder="tiny", weights="random", features=4, max_features=8),
    train=TrainConfig(batch_size=2),
)


def test_a_run_that_may_not_fit_is_named_in_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = memory.step_memory(CONFIG, StubPlan(), 2).total
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    with caplog.at_level(logging.INFO):
        memory.prepare_memory(CONFIG, StubPlan(), ALONE)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("needs about", "in float32 on cpu", "are free on cpu", "train.batch_size", "plan.memory"):
        assert part in record.getMessage()


def test_a_step_beyond_the_whole_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = memory.step_memory(CONFIG, StubPlan(), 2).total
    monkeypatch.setattr(memory, "free_memory", lambda device: needed // 2)
    monkeypatch.setattr(memory, "total_memory", lambda: needed - 1)
    with pytest.raises(ConfigError, match=r"cannot fit into memory(.|\n)* in all(.|\n)*train\.batch_size"):
        memory.prepare_memory(CONFIG, StubPlan(), ALONE)


@pytest.mark.parametrize("free", [10**12, None])
def test_nothing_is_said_where_it_fits_or_nothing_is_known(
    free: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    memory.prepare_memory(CONFIG, StubPlan(), ALONE)
    assert not caplog.records


def test_where_memory_is_tight_freed_memory_is_returned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = memory.step_memory(CONFIG, StubPlan(), 2).total
    calls: list[bool] = []
    monkeypatch.setattr(memory, "return_freed_memory", lambda: calls.append(True) or True)
    for free in (int(memory.HEAP_FACTOR * needed), int(memory.HEAP_FACTOR * needed) - 1):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        with caplog.at_level(logging.INFO):
            memory.prepare_memory(CONFIG, StubPlan(), ALONE)
    assert calls == [True]
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "freed memory is returned" in record.getMessage()


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**9)
    assert memory.compare_with_free(CONFIG, 4 * 10**8)[0] is memory.Fit.ROOMY
    fit, text = memory.compare_with_free(CONFIG, 4 * 10**8, processes=2)
    assert fit is memory.Fit.TIGHT
    assert "800 MB" in text
    assert memory.compare_with_free(CONFIG, 4 * 10**8, processes=3)[0] is memory.Fit.SHORT


def test_the_precision_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.run_precision(CONFIG) == (torch.device("cpu"), torch.float32)
    monkeypatch.setattr("volseg.device.has_native_bf16", lambda device: True)
    auto = replace(CONFIG, precision="auto")
    assert memory.run_precision(auto) == (torch.device("cpu"), torch.bfloat16)
    plan = StubPlan(patch_size=(16, 32, 32))
    assert memory.step_memory(auto, plan, 2).total < 0.8 * memory.step_memory(CONFIG, plan, 2).total


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is here")
def test_a_gpu_that_is_not_here_is_counted() -> None:
    assert memory.run_precision(replace(CONFIG, device="cuda")) == (torch.device("cuda"), torch.float32)
    auto = replace(CONFIG, device="cuda", precision="auto")
    assert memory.run_precision(auto) == (torch.device("cuda"), torch.bfloat16)
    with pytest.raises(ConfigError, match="the device is not available"):
        memory.run_precision(replace(CONFIG, device="gpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is here")
def test_a_recorded_step_keeps_its_memory_beside_the_differences_of_the_average() -> None:
    """On a GPU the average moves by the differences of all weights; between recorded steps, gradients live on."""

    def activations(*, ranks: Ranks = ALONE, **train: Any) -> int:
        settings = replace(CONFIG.train, **train)
        config = replace(CONFIG, device="cuda", train=settings)
        return memory.step_memory(config, plan, 2, ranks).activations

    plan = StubPlan(patch_size=(16, 32, 32))
    trained = memory.step_memory(CONFIG, plan, 2).optimizer // 2
    assert activations() - activations(replay="never") == trained
    assert activations(ranks=replace(ALONE, size=2)) == activations(replay="never")


def test_a_gpu_has_a_limit_without_a_stated_one_and_a_cpu_has_none() -> None:
    on_gpu = replace(CONFIG, device="cuda")
    unstated, stated = PlanSettings.read({}), PlanSettings.read({"memory": "2GB"})
    assert memory.memory_budget(CONFIG, unstated) is None
    limits = [memory.memory_budget(on_gpu, unstated), memory.memory_budget(on_gpu, stated)]
    assert [limit and (limit.limit_bytes, limit.default) for limit in limits] == [(8 * 10**9, True), (2 * 10**9, False)]
