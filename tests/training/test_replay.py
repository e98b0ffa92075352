"""Steps that are recorded and replayed, with a stand-in for the GPU: what is recorded, checked and given up."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.made.plans import StubPlan
from tests.training.test_waiting import make_batch
from volseg.config.load import load_config
from volseg.config.schema import REPLAYS, Config
from volseg.device import free_memory
from volseg.errors import ConfigError
from volseg.training import state
from volseg.training.checkpoint import RunProgress, load_checkpoint
from volseg.training.ranks import ALONE
from volseg.training.replay import MOST_ATTEMPTS, CudaGraphs, Replayer, Waits, choose_graphs, clean_up, restored
from volseg.training.state import TrainingState

PLAN = StubPlan()
MODEL = ["model.encoder=tiny", "model.weights=random", "model.features=4", "model.max_features=8"]
RUN = ["device=cpu", "precision=32", "train.max_steps=10", "train.lr=1e-2"]
DIFFER = "the (losses|gradients) of the recording and of the network differ by"


class Repeated:
    """Computes anew in place of a recording; a fault is made before each."""

    def __init__(self, fault: Callable[[], Any] | None = None) -> None:
        self.fault = fault
        self.repeats = 0
        self.model = nn.Module()

    def warm_up(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        with restored(self.model):  # a GPU computes nothing while it records
            result = compute()

        def repeat() -> None:
            self.repeats += 1
            if self.fault is not None:
                self.fault()
            result.copy_(compute())

        return result, repeat


class Frozen(Repeated):
    """Repeats nothing, as a recording of another memory would."""

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        return compute(), lambda: None


class Failing(Repeated):
    """Cannot record, as a GPU that must be read: the end of the recording is an error of its own."""

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def make_state(graphs: Any, monkeypatch: pytest.MonkeyPatch, *settings: str) -> TrainingState:
    monkeypatch.setattr(state, "choose_graphs", lambda *_: graphs)
    made = TrainingState(load_config(None, [*MODEL, *RUN, *settings]), PLAN)
    if graphs is not None:
        graphs.model = made.model
    return made


def batches_of(count: int, *damaged: int) -> list[dict[str, Any]]:
    made = [make_batch(PLAN, seed) for seed in range(count)]
    for number in damaged:
        made[number]["image"] = made[number]["image"] * float("nan")
    return made


def losses_and_weights(run: TrainingState, batches: list[dict[str, Any]]) -> tuple[list[float], dict[str, Tensor]]:
    losses = [run.step([batch], step, spent=0.5).loss.item() for step, batch in enumerate(batches)]
    return losses, {**run.model.state_dict(), **{f"average {k}": v for k, v in run.average.model.state_dict().items()}}


@pytest.mark.parametrize(
    "settings",
    [["model.drop_path=0.5", "model.decoder=unet2d"], ["train.deep_supervision=false", "train.optimizer=sgd"]],
)
@pytest.mark.parametrize("damaged", [2, 0])
def test_replayed_steps_are_those_of_the_network(
    settings: list[str], damaged: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    graphs = Repeated()
    plain, replayed = (make_state(one, monkeypatch, *settings) for one in (None, graphs))
    expected, weights = losses_and_weights(plain, batches_of(5, damaged))
    losses, found = losses_and_weights(replayed, batches_of(5, damaged))
    assert str(losses) == str(expected)  # with nan
    assert all(torch.equal(value, weights[name]) for name, value in found.items())
    assert (plain.is_replayed, replayed.is_replayed) == (False, True)
    assert graphs.repeats == 2 + (4 if damaged == 0 else 5)  # a first batch that is not finite is not recorded
    assert caplog.text.count("were recorded and are replayed") == 1


def test_accumulated_batches_are_recorded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, replayed = (make_state(one, monkeypatch) for one in (None, Repeated()))
    for step in range(2):
        outcomes = [run.step(batches_of(2), step, spent=0.5) for run in (plain, replayed)]
        assert outcomes[0].loss == outcomes[1].loss
    assert replayed.is_replayed


def test_a_resumed_run_that_is_replayed_is_bitwise_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    batches, settings = batches_of(4), ["model.drop_path=0.5"]
    whole, first, resumed = (make_state(Repeated(), monkeypatch, *settings) for _ in range(3))
    for step, batch in enumerate(batches):
        whole.step([batch], step, spent=0.5)
        if step < 2:
            first.step([batch], step, spent=0.5)
    first.save(tmp_path, RunProgress(step=2))
    resumed.restore(tmp_path)
    for step in (2, 3):
        resumed.step([batches[step]], step, spent=0.5)
    for run in (whole, resumed):
        run.save(tmp_path / str(id(run)), RunProgress(step=4))
    one, other = (load_checkpoint(tmp_path / str(id(run))) for run in (whole, resumed))
    states = [[each.model, each.average, each.optimizer["state"]] for each in (one, other)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("graphs", "reason"),
    [
        (Failing(), "operation not permitted when stream is capturing"),
        (Frozen(), "the (losses|gradients) of the recording and of the network differ by"),
        (
            Repeated(partial(torch.manual_seed, 3)),
            "the (losses|gradients) of the recording and of the network differ by",
        ),
    ],
    ids=["fails", "repeats another batch", "repeats its random numbers"],
)
def test_a_recording_that_fails_or_computes_something_else_is_given_up(
    graphs: Repeated, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, tried = (make_state(one, monkeypatch, "model.drop_path=0.5") for one in (None, graphs))
    expected, weights = losses_and_weights(plain, batches_of(3))
    losses, found = losses_and_weights(tried, batches_of(3))
    assert losses == expected
    assert all(torch.equal(value, weights[name]) for name, value in found.items())
    assert not tried.is_replayed
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert re.search(f"not replayed, but computed anew: {reason}", warnings[0])


@pytest.mark.parametrize("is_open", [True, False])
def test_memory_of_a_failed_recording_is_released_unless_the_graph_does_it(
    is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def end(*arguments: Any) -> None:
        calls.append(arguments)
        if not is_open:
            raise RuntimeError("not currently recording to mempool_id")

    generator = SimpleNamespace(clone_state=lambda: "new state", graphsafe_set_state=calls.append)
    monkeypatch.setattr(torch.cuda, "default_generators", (None, generator))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *arguments: calls.append(arguments))
    clean_up(1, (0, 7))
    assert calls == ["new state", *[(1, (0, 7))] * (2 if is_open else 1)]


def test_a_recording_that_keeps_other_weights_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Repeated()
    plain, tried = (make_state(one, monkeypatch) for one in (None, graphs))
    first = [weight.detach().clone() for weight in tried.model.parameters()]

    def keep() -> None:
        with torch.no_grad():
            for weight, value in zip(tried.model.parameters(), first, strict=True):
                weight.copy_(value)

    graphs.fault = keep
    expected, weights = losses_and_weights(plain, batches_of(3))
    losses, found = losses_and_weights(tried, batches_of(3))
    assert losses == expected
    assert all(torch.equal(value, weights[name]) for name, value in found.items())
    assert re.search(DIFFER, caplog.text)


def test_a_batch_of_another_shape_ends_the_replay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, replayed = (make_state(one, monkeypatch) for one in (None, Repeated()))
    batches = batches_of(3)
    batches[1] = {name: value[:1] for name, value in batches[1].items()}
    assert losses_and_weights(replayed, batches)[0] == losses_and_weights(plain, batches)[0]
    assert not replayed.is_replayed
    assert "a batch has another shape than the first" in caplog.text


def squares(model: nn.Module) -> Callable[[Any], Tensor]:
    """Gradients of the sum of squares, which are not finite for large images."""

    def compute(batches: Any) -> Tensor:
        model.zero_grad()
        loss = model(batches[0]["image"]).square().sum()
        loss.backward()
        return loss.detach()

    return compute


def test_a_step_whose_gradients_are_not_finite_leaves_the_recording_to_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, graphs = nn.Linear(3, 1, bias=False), Repeated()
    graphs.model = model
    compute = squares(model)
    replayer = Replayer(compute, model, graphs)
    for step, scale in enumerate([1e30, 1, 2, 1e30, 3]):
        batch = {"image": scale * (torch.arange(3.0) + step)}
        found = [replayer.gradients([batch], lambda: None).clone(), model.weight.grad.clone()]
        expected = [compute([batch]), model.weight.grad]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert replayer.is_recorded == (step > 0)
    assert graphs.repeats == 2 + 4
    assert "not replayed" not in caplog.text


def test_a_network_whose_gradients_are_never_finite_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(3, 1, bias=False)
    replayer = Replayer(squares(model), model, Repeated())
    for step in range(5):
        replayer.gradients([{"image": 1e30 * (torch.arange(3.0) + step)}], lambda: None)
        assert caplog.text.count("the first steps are not finite") == (step >= MOST_ATTEMPTS - 1)
    assert not replayer.is_recorded


def test_operations_that_read_the_device_are_found_before_recording(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)

    def compute(batches: Any) -> Tensor:
        model.zero_grad()
        loss = model(batches[0]["image"]).sum() * batches[0]["image"].max().item()
        loss.backward()
        return loss.detach()

    replayer = Replayer(compute, model, Repeated())
    assert replayer.gradients([{"image": torch.arange(3.0)}], lambda: None).item() == 6
    assert not replayer.is_recorded
    assert "operations that a recording cannot repeat: _local_scalar_dense" in caplog.text


def test_tensors_of_another_device_are_found() -> None:
    with Waits(torch.device("cpu")) as waits:
        torch.ones(3) * torch.ones(())
    assert waits.names == []
    with Waits(torch.device("meta")) as waits:
        values = torch.ones(3, device="meta")
        values * torch.ones(())  # a number
        values.copy_(torch.ones(3, device="meta"))
        assert "copy_" not in waits.names
        torch.ones(2).to("meta")
        values.copy_(torch.ones(()))
    assert {"_to_copy", "copy_"} <= set(waits.names)


def test_only_single_processes_on_cuda_record() -> None:
    def choice(config: Config, device: str = "cuda:0", processes: int = 1) -> bool:
        return isinstance(choose_graphs(config, torch.device(device), replace(ALONE, size=processes)), CudaGraphs)

    config = load_config(None, ["train.replay=auto"])
    assert choice(config)
    assert not choice(config, "cpu")
    assert not choice(config, "mps")
    assert not choice(config, processes=2)
    assert not choice(load_config(None, ["train.replay=never"]))
    assert not choice(load_config(None, ["model.checkpoint_encoder=true"]))
    with pytest.raises(ConfigError, match=r"train\.replay"):
        load_config(None, ["train.replay=on"])


@pytest.mark.parametrize("choice", REPLAYS)
def test_a_choice_is_no_boolean_in_a_yaml_file(choice: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"train:\n  replay: {choice}\n")
    assert load_config(tmp_path / "run.yaml").train.replay == choice


@pytest.mark.parametrize(("backend", "expected"), [("native", 1600), ("cudaMallocAsync", 2000)])
def test_memory_of_a_recording_is_not_free(backend: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(device: int, pool: tuple[int, int]) -> dict[str, Any]:
        return {"device": device, "segment_pool_id": pool, "total_size": 700, "allocated_size": 300}

    segments = [segment(1, (0, 0)), segment(1, (0, 1)), segment(0, (0, 1))]
    for name, value in {"mem_get_info": (1000, 9000), "memory_reserved": 1800, "memory_allocated": 800}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert free_memory(torch.device("cuda:1")) == int(0.9 * expected)
