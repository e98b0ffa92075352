from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.made.plans import StubPlan
from volseg.config.schema import Config, ModelConfig, TrainConfig
from volseg.device import has_native_bf16, prediction_dtype, training_dtype
from volseg.errors import ConfigError, ModelFileError
from volseg.training.checkpoint import RunProgress, load_checkpoint
from volseg.training.state import TrainingState


def make_state(**train: Any) -> TrainingState:
    model = ModelConfig(encoder="identity", features=4, max_features=8)
    config = Config(device="cpu", precision="32", model=model, train=TrainConfig(max_steps=10, **train))
    return TrainingState(config, StubPlan())


def make_batch(seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    plan = StubPlan()
    depth, height, width = plan.patch_size
    return {
        "image": torch.randn(2, plan.num_channels, depth + 2, height, width),
        "label": torch.randint(0, plan.num_classes, (2, depth, height, width)),
    }


def test_steps_lower_the_loss_and_follow_the_schedule() -> None:
    state, batch = make_state(lr=1e-2, warmup_fraction=0.5), make_batch()
    first = state.step([batch], 0, spent=0.25).loss
    assert state.lr == pytest.approx(0.5e-2)
    losses = [state.step([batch], step, spent=0.5).loss.item() for step in range(1, 12)]
    assert losses[-1] < 0.95 * first.item()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_average_nor_optimizer(
    value: float, tmp_path: Path
) -> None:
    state, batch = make_state(), make_batch()
    assert state.step([batch], 0, spent=0.5).is_finite
    state.save(tmp_path, RunProgress(step=1))
    before = load_checkpoint(tmp_path)
    damaged = {**batch, "image": batch["image"].clone()}
    damaged["image"][0, 0, 1, 1, 1] = value
    outcome = state.step([batch, damaged], 1, spent=0.5)
    assert not outcome.is_finite
    state.save(tmp_path, RunProgress(step=2))
    after = load_checkpoint(tmp_path)
    assert after.average_updates == before.average_updates == 1
    states = [[one.model, one.average, one.optimizer["state"]] for one in (after, before)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert state.step([batch], 2, spent=0.5).is_finite
    assert any(not torch.equal(value, before.model[name]) for name, value in state.model.state_dict().items())


@pytest.mark.parametrize("loss", ["dice_ce", "dice_focal"])
def test_small_batches_add_up_to_a_large_one(loss: str) -> None:
    settings: dict[str, Any] = {"loss": loss, "batch_dice": False, "class_weights": [1.0, 3.0, 0.5]}
    batches = [make_batch(seed) for seed in range(3)]
    batches[0]["label"][:, 2:7, 1:9] = -1  # the batches have different numbers of voxels that count
    batches[1]["label"][1] = -1
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    one, other = make_state(**settings), make_state(**settings)
    for step in range(2):
        outcomes = one.step([whole], step, spent=0.5), other.step(batches, step, spent=0.5)
        torch.testing.assert_close(outcomes[0].loss, outcomes[1].loss)
        torch.testing.assert_close(outcomes[0].gradient_norm, outcomes[1].gradient_norm)
        for ours, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert other.average.updates == 2


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    make_state().save(tmp_path, RunProgress(step=3, elapsed_s=1.5))
    assert make_state().restore(tmp_path) == RunProgress(step=3, elapsed_s=1.5)
    model = ModelConfig(encoder="identity", features=8)
    other = Config(device="cpu", precision="32", model=model, train=TrainConfig(max_steps=10))
    with pytest.raises(ConfigError, match=r"model\.features: the run has 4, given 8"):
        TrainingState(other, StubPlan()).restore(tmp_path)
    with pytest.raises(ModelFileError, match=r"none.*last\.pt"):
        make_state().restore(tmp_path / "none")


@pytest.mark.parametrize("native", [True, False])
def test_bf16_only_where_the_processor_has_it_and_never_in_prediction_on_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native}, raising=False)
    cpu = torch.device("cpu")
    expected = torch.bfloat16 if native else torch.float32
    assert training_dtype("auto", cpu) == expected
    if native:
        assert training_dtype("bf16", cpu) == torch.bfloat16
    else:
        with pytest.raises(ConfigError, match="cannot be used on this CPU"):
            training_dtype("bf16", cpu)
    assert training_dtype("32", cpu) == torch.float32
    assert prediction_dtype("auto", cpu) == torch.float32


@pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="bf16 needs a CPU with AMX")
def test_a_step_in_bf16_is_near_the_step_in_float32() -> None:
    losses = []
    for precision in ("32", "bf16"):
        model = ModelConfig(encoder="tiny", weights="random", features=4, max_features=8)
        state = TrainingState(Config(device="cpu", precision=precision, model=model), StubPlan())
        losses.append([state.step([make_batch()], step, spent=0.5).loss.item() for step in range(3)])
        assert all(parameter.dtype == torch.float32 for parameter in state.model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]
