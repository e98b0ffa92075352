"""A step that does not wait for the device: nothing is read, and no number is copied to it; a skipped step is exact."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from tests.made.plans import THICK, StubPlan
from tests.pretraining.made import SHAPE, SMALL, source, stored
from volseg.config.load import load_config
from volseg.config.schema import Config, ModelConfig, TrainConfig
from volseg.errors import VolsegError
from volseg.pretraining.state import PretrainingState
from volseg.pretraining.views import SliceViews
from volseg.training.checkpoint import RunProgress, load_checkpoint
from volseg.training.ema import move, move_by_tensor
from volseg.training.losses import resized
from volseg.training.optimizer import build_optimizer, load_optimizer, step_if
from volseg.training.outcome import MOST_UNREAD, Outcomes, StepOutcome
from volseg.training.replay import Waits
from volseg.training.run_log import RunLog
from volseg.training.state import TrainingState
from volseg.training.steps import Steps, run_steps

REGIONS = StubPlan(num_classes=2, region_indices=((1, 2), (2,)))


def make_state(plan: StubPlan, model: dict[str, Any], **train: Any) -> TrainingState:
    settings = ModelConfig(**{"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8, **model})
    config = Config(device="cpu", precision="32", model=settings, train=TrainConfig(max_steps=10, **train))
    return TrainingState(config, plan)


def make_batch(plan: StubPlan, seed: int = 1, halo: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    depth, height, width = plan.patch_size
    image = torch.randn(2, plan.num_channels, depth + 2 * halo, height, width, generator=generator)
    label = torch.randint(0, plan.num_classes, (2, depth, height, width), generator=generator)
    return {"image": image, "label": label, "case": ["a", "b"]}


@pytest.mark.parametrize(
    ("plan", "model", "train"),
    [
        (StubPlan(), {"aggregator": "attention"}, {"class_weights": [1.0, 3.0, 0.5], "loss": "dice_focal"}),
        (THICK, {"aggregator": "conv", "adaptation": "lora"}, {"class_weights": [1.0, 3.0, 0.5], "accumulate": 2}),
        (
            StubPlan(num_classes=2, region_indices=((1, 2), (2,))),
            {"encoder": "dinov3_s16"},
            {"class_weights": [1.0, 3.0]},
        ),
        (REGIONS, {"encoder": "identity"}, {"loss": "focal"}),
        (StubPlan(), {"encoder": "identity"}, {"deep_supervision": False, "batch_dice": False}),
        (StubPlan(), {"decoder": "unet2d"}, {}),
    ],
)
def test_a_step_reads_nothing_from_the_device(
    plan: StubPlan, model: dict[str, Any], train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state(plan, model, **train)
    monkeypatch.setattr("volseg.training.ema.move", move_by_tensor)  # as on a GPU
    batch = make_batch(plan, halo=state.model.halo)
    state.step([batch], 0, spent=0.5)
    with Waits(torch.device("cpu")) as waits:
        state.step([batch] * train.get("accumulate", 1), 1, spent=0.5)
    assert waits.names == []


def test_a_step_of_pretraining_reads_nothing_from_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("pretrain", [*SMALL, "train.max_steps=100", "pretrain.local_views=3"])
    monkeypatch.setattr("volseg.pretraining.state.move", move_by_tensor)
    scans = [source(stored(tmp_path / name, torch.randn(24, 24, 24).numpy())) for name in "ab"]
    views = SliceViews(scans, SHAPE, seed=0, batch_size=4, samples=4)
    batch = default_collate([views[index] for index in range(4)])
    state = PretrainingState(config, None)
    state.step([batch], 0, 0.5)
    with Waits(torch.device("cpu")) as waits:
        state.step([batch], 1, 0.5)
    assert waits.names == ["nonzero"]  # of the masks, while they are on the CPU


def test_the_detector_of_waits_finds_them() -> None:
    values = torch.randn(3)
    with Waits(torch.device("cpu")) as waits:
        for _ in range(2):
            bool((values > 0).all())
            values[values > 0]
            values[[0, 2]]
            values.new_tensor(1.0)
    assert waits.names == 2 * ["_local_scalar_dense", "index", "lift_fresh", "lift_fresh"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_with_skipped_steps_is_bitwise_the_run_without_them(optimizer: str) -> None:
    plan = StubPlan()
    one, other = (make_state(plan, {"encoder": "identity"}, optimizer=optimizer) for _ in range(2))
    good = [make_batch(plan, seed, one.model.halo) for seed in range(3)]
    bad = {**good[0], "image": good[0]["image"] * float("nan")}
    for step, batch in enumerate(good):
        assert not other.step([bad], step, spent=0.5).is_finite  # also before the first step
        assert one.step([batch], step, spent=0.5).is_finite
        assert other.step([batch], step, spent=0.5).is_finite
    assert other.average.updates == one.average.updates == 3
    for name in ("model", "average"):
        states = [getattr(state, name) for state in (one, other)]
        ours, theirs = ((state if name == "model" else state.model).state_dict() for state in states)
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_skipped_step_leaves_the_means_of_batch_norms() -> None:
    plan = StubPlan()
    state = make_state(plan, {"decoder": "unet2d"})
    batch = make_batch(plan, halo=state.model.halo)
    state.step([batch], 0, spent=0.5)
    before = {name: value.clone() for name, value in state.model.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    assert not state.step([{**batch, "image": batch["image"] * float("inf")}], 1, spent=0.5).is_finite
    assert all(torch.equal(value, before[name]) for name, value in state.model.named_buffers())
    state.step([batch], 2, spent=0.5)
    for name, value in state.average.model.named_buffers():
        assert torch.equal(value, state.model.get_buffer(name))
        assert value.isfinite().all()


def weights_after(steps: int, optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], first: int = 0) -> Tensor:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        step_if(optimizer, torch.tensor(True))
    return torch.cat([weight.detach().flatten() for weight in weights]).clone()


def made_weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((33, 5), (7,), (4, 1, 3, 3))]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_fused_optimizer_is_that_of_torch_and_takes_its_state(name: str) -> None:
    """Checkpoints of earlier versions, and of devices without fused kernels, hold the state of the plain one."""
    config = TrainConfig(max_steps=1, optimizer=name)
    ours, theirs = made_weights(), made_weights()
    groups = [{"params": weights, "lr": 0.01, "weight_decay": 0.1} for weights in (ours, theirs)]
    fused = build_optimizer(config, [groups[0]], torch.device("cpu"))
    plain = build_optimizer(config, [groups[1]], torch.device("mps"))  # reads the flag itself
    assert (fused.param_groups[0]["fused"], plain.param_groups[0]["fused"]) == (True, False)
    torch.testing.assert_close(weights_after(5, fused, ours), weights_after(5, plain, theirs), rtol=1e-6, atol=1e-6)
    before = torch.cat([weight.detach().flatten() for weight in theirs])
    step_if(plain, torch.tensor(False))
    assert torch.equal(before, torch.cat([weight.detach().flatten() for weight in theirs]))
    copied = [nn.Parameter(weight.detach().clone()) for weight in theirs]
    resumed = build_optimizer(config, [{"params": copied, "lr": 0.5}], torch.device("cpu"))
    load_optimizer(resumed, copy.deepcopy(plain.state_dict()))
    assert (resumed.param_groups[0]["fused"], resumed.param_groups[0]["lr"]) == (True, 0.01)
    expected = weights_after(3, plain, theirs, first=5)
    torch.testing.assert_close(weights_after(3, resumed, copied, first=5), expected, rtol=1e-6, atol=1e-6)


def test_tensors_move_by_a_weight_on_the_device_as_by_a_number() -> None:
    for weight in (0.0, 0.01, 2 / 11, 9 / 11, 1.0):
        averaged, current = ([torch.randn(4, 3), torch.randn(5)] for _ in range(2))
        expected = [value.clone() for value in averaged]
        before = [value.clone() for value in averaged]
        move(expected, current, torch.tensor(weight, dtype=torch.float64))
        move_by_tensor(averaged, current, torch.tensor(weight, dtype=torch.float64))
        torch.testing.assert_close(averaged, expected, rtol=1e-6, atol=1e-6)
        if weight == 0:
            assert all(torch.equal(one, other) for one, other in zip(averaged, before, strict=True))


@pytest.mark.parametrize("size", [(4, 8, 16), (2, 4, 8), (8, 8, 8), (1, 3, 5), (5, 16, 16)])
def test_labels_are_resized_to_the_nearest_voxel(size: tuple[int, int, int]) -> None:
    target = torch.randint(-1, 5, (2, 8, 16, 16), generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(target[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
    assert torch.equal(resized(target, [size])[0], expected)


class LateOutcome(StepOutcome):
    """An outcome that is read late, as that of a GPU."""

    is_asynchronous = True


class LateState(TrainingState):
    """A state whose outcomes are read late."""

    def step(self, *arguments: Any, **options: Any) -> StepOutcome:
        outcome = super().step(*arguments, **options)
        return LateOutcome(outcome.loss, outcome.gradient_norm)


def test_outcomes_of_a_gpu_are_read_when_later_steps_are_started() -> None:
    run = RunProgress()
    outcomes = Outcomes(run)
    for loss in (1.0, float("nan"), 3.0, 4.0):
        run.step += 1
        outcomes.add(LateOutcome(torch.tensor(loss), torch.tensor(1.0)), [{"case": [f"case{run.step}"]}])
    assert MOST_UNREAD == 2
    assert [loss.item() for loss in run.losses] == [1]
    assert run.failures == ["step 2: loss nan, gradient norm 1, cases case2"]
    outcomes.record()
    assert ([loss.item() for loss in run.losses], run.skipped, run.failures) == ([1, 3, 4], 1, [])


class Patches(Dataset[dict[str, Any]]):
    """Patches of noise, one a step; those of some steps hold a NaN."""

    def __init__(self, plan: StubPlan, *damaged: int) -> None:
        self.plan = plan
        self.damaged = damaged

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = make_batch(self.plan, index)
        image = batch["image"][0] * (float("nan") if index in self.damaged else 1)
        return {"image": image, "label": batch["label"][0], "case": f"case{index}"}


def run_late(kind: type[TrainingState], folder: Path, *damaged: int) -> tuple[RunProgress, TrainingState]:
    plan, run = StubPlan(), RunProgress()
    settings = ["model.encoder=identity", "model.features=4", "model.max_features=8", "device=cpu", "precision=32"]
    settings += ["train.max_steps=45", "train.batch_size=1", "data.workers=0", "train.checkpoint_every=30"]
    config = load_config(None, settings)
    state = kind(config, plan)
    folder.mkdir()
    steps = Steps(
        config=config,
        batch_size=1,
        checkpoints=folder / "checkpoint",
        state=state,
        samples=Patches(plan, *damaged),
        log=RunLog(folder, 0),
    )
    run_steps(steps, run)
    return run, state


def test_a_run_that_reads_late_has_the_log_and_checkpoint_of_one_that_does_not(tmp_path: Path) -> None:
    rows, finals = [], []
    for kind in (TrainingState, LateState):
        folder = tmp_path / kind.__name__
        run, state = run_late(kind, folder, 3, 18, 19, 44)
        finals.append(load_checkpoint(folder / "checkpoint"))
        assert (run.step, run.skipped, state.average.updates) == (45, 4, 41)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        rows.append([line.split(', "elapsed_s"')[0] for line in lines])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2
    one, late = finals
    states = [[each.model, each.average, each.optimizer["state"], each.progress.losses] for each in finals]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert one.progress.failures == late.progress.failures
    assert len(late.progress.failures) == 1


def test_three_skipped_steps_end_a_run_that_reads_late_without_a_later_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(VolsegError, match="3 steps in a row") as error:
        run_late(LateState, tmp_path / "late", 28, 29, 30)
    assert "step 31: loss nan, gradient norm nan, cases case30" in str(error.value)
    progress = load_checkpoint(tmp_path / "late" / "checkpoint").progress
    assert (progress.step, progress.skipped, len(progress.failures)) == (30, 2, 2)
    with pytest.raises(VolsegError, match="3 steps in a row"):  # before the checkpoint that is due
        run_late(LateState, tmp_path / "due", 27, 28, 29)
    assert not (tmp_path / "due" / "checkpoint" / "last.pt").exists()
