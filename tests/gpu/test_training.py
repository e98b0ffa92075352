"""Training on a GPU: replayed steps against plain ones and against the CPU, resuming, and steps that do not wait."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from tests.made.plans import StubPlan
from tests.pretraining.made import SHAPE, SMALL, source, stored
from tests.training.test_waiting import make_batch
from volseg.config.load import load_config
from volseg.device import deterministic_algorithms, full_float32
from volseg.pretraining.state import PretrainingState
from volseg.pretraining.views import SliceViews
from volseg.training.checkpoint import RunProgress
from volseg.training.replay import CudaGraphs
from volseg.training.state import TrainingState

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")]

PLAN = StubPlan()
SETTINGS = ["model.encoder=tiny", "model.weights=random", "model.features=4", "model.max_features=8"]
SETTINGS += ["precision=32", "train.max_steps=10", "train.lr=1e-2"]
ALL = [["model.drop_path=0.5", "model.aggregator=attention"], ["model.encoder=identity", "train.optimizer=sgd"]]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with full_float32():
        yield


def make_state(*settings: str) -> TrainingState:
    return TrainingState(load_config(None, [*SETTINGS, "device=cuda", *settings]), PLAN)


def batches_of(count: int, *damaged: int, device: str = "cuda") -> list[dict[str, Any]]:
    made = [make_batch(PLAN, seed) for seed in range(count)]
    for number in damaged:
        made[number]["image"] = made[number]["image"] * float("nan")
    return [{**batch, **{name: batch[name].to(device) for name in ("image", "label")}} for batch in made]


def run(state: TrainingState, batches: list[dict[str, Any]], first: int = 0) -> list[float]:
    outcomes = [state.step([batch], first + number, spent=0.5) for number, batch in enumerate(batches)]
    return [outcome.loss.item() for outcome in outcomes]


def weights(state: TrainingState) -> list[Tensor]:
    return [*state.model.state_dict().values(), *state.average.model.state_dict().values()]


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_replayed_steps_are_those_of_the_network(settings: list[str], device: str) -> None:
    batches = batches_of(5, 2)
    plain = make_state(*settings, f"device={device}", "train.replay=never")
    replayed = make_state(*settings, f"device={device}")
    with deterministic_algorithms(enabled=True):  # Adam would make large steps of small differences
        expected, losses = run(plain, batches), run(replayed, batches)
    assert (plain.is_replayed, replayed.is_replayed) == (False, True)
    assert losses == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert replayed.average.updates == plain.average.updates == 4
    for one, other in zip(weights(replayed), weights(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "32"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_bf16_and_accumulated_batches_are_replayed(precision: str, accumulate: int) -> None:
    batches = batches_of(2)[:accumulate]
    plain, replayed = (make_state(f"precision={precision}", f"train.replay={mode}") for mode in ("never", "auto"))
    losses = [[state.step(batches, step, spent=0.5).loss.item() for step in range(4)] for state in (plain, replayed)]
    assert replayed.is_replayed
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if precision == "bf16" else 1e-5)


def recorded_bytes() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    segments = torch.cuda.memory_snapshot()
    return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0))


def test_a_recording_that_fails_leaves_neither_memory_nor_a_generator_that_is_stuck() -> None:
    def compute() -> Tensor:
        values = torch.rand(2**22, device="cuda")
        return values * values.sum().item()  # reading ends the recording

    before = recorded_bytes()
    with pytest.raises(RuntimeError):
        CudaGraphs(torch.device("cuda")).record(compute)
    assert recorded_bytes() == before
    torch.manual_seed(1)
    first = torch.rand(3, device="cuda")
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3, device="cuda"), first)


def test_steps_are_those_of_the_cpu() -> None:
    on_cpu, on_gpu = make_state("device=cpu", "train.lr=1e-3"), make_state("train.lr=1e-3")
    expected = run(on_cpu, batches_of(4, 1, device="cpu"))
    assert run(on_gpu, batches_of(4, 1)) == pytest.approx(expected, rel=2e-3, nan_ok=True)
    assert on_gpu.average.updates == 3


@pytest.mark.parametrize("settings", ALL)
def test_a_resumed_run_is_bitwise_the_same(settings: list[str], tmp_path: Path) -> None:
    with deterministic_algorithms(enabled=True):
        batches = batches_of(5, 1)
        whole, first, resumed = (make_state(*settings) for _ in range(3))
        run(whole, batches)
        run(first, batches[:3])
        first.save(tmp_path, RunProgress(step=3))
        resumed.restore(tmp_path)
        run(resumed, batches[3:], first=3)
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(resumed), strict=True))


def test_a_checkpoint_of_the_gpu_continues_on_the_cpu_and_back(tmp_path: Path) -> None:
    state = make_state()
    run(state, batches_of(2))
    for number, device in enumerate(("cpu", "cuda")):
        state.save(tmp_path, RunProgress(step=2 + number))
        state = make_state(f"device={device}")
        state.restore(tmp_path)
        assert run(state, batches_of(1, device=device), first=2 + number)[0] > 0
    assert state.average.updates == 4


@pytest.mark.parametrize("replay", ["auto", "never"])
@pytest.mark.parametrize("settings", ALL)
def test_a_step_does_not_wait(settings: list[str], replay: str) -> None:
    state, batches = make_state(*settings, f"train.replay={replay}"), batches_of(6, 3)
    run(state, batches[:2])
    with waiting_is_an_error():
        outcomes = [state.step([batch], step, spent=0.5) for step, batch in enumerate(batches[2:], start=2)]
    assert [outcome.is_finite for outcome in outcomes] == [True, False, True, True]


def test_a_step_of_pretraining_does_not_wait_and_is_that_of_the_cpu(tmp_path: Path) -> None:
    scans = [source(stored(tmp_path / name, torch.randn(24, 24, 24).numpy())) for name in "ab"]
    views = SliceViews(scans, SHAPE, seed=0, batch_size=4, samples=4)
    batch = default_collate([views[index] for index in range(4)])
    losses = []
    for device in ("cpu", "cuda"):
        settings = [*SMALL, "train.max_steps=100", "pretrain.local_views=3", f"device={device}"]
        state = PretrainingState(load_config("pretrain", settings), None)
        outcomes = [state.step([batch], 0, 0.5)]
        with waiting_is_an_error():
            outcomes += [state.step([batch], step, 0.5) for step in (1, 2)]
        losses.append([outcome.loss.item() for outcome in outcomes])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
