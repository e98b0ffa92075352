"""One step of pretraining: losses, schedules, teacher and parameter groups; the measures of its features."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from tests.pretraining.made import SHAPE, SMALL, source, stored
from volseg.config.encoders import CATALOGUE
from volseg.config.load import load_config
from volseg.config.schema import Config, ModelConfig
from volseg.errors import ConfigError
from volseg.pretraining.encoder import check_encoder, is_pretrainable
from volseg.pretraining.losses import class_token_losses, koleo_loss, patch_loss, sinkhorn_knopp
from volseg.pretraining.measures import MeasuredSlices, effective_rank, measure, nearest_neighbours
from volseg.pretraining.slices import SliceSource
from volseg.pretraining.state import PretrainingState, rgb
from volseg.pretraining.views import SliceViews


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("pretrain", [*SMALL, "train.max_steps=100", "train.clip_norm=1e9", "pretrain.local_views=3"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[SliceSource]:
    folder, rng = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    ramp = np.linspace(-1, 1, 24)[:, None, None] + np.linspace(-0.5, 0.5, 24)[None, :, None]
    return [source(stored(folder / name, ramp + 0.3 * rng.normal(size=(24, 24, 24)))) for name in "abcd"]


@pytest.fixture(scope="module")
def batch(sources: list[SliceSource]) -> dict[str, torch.Tensor]:
    views = SliceViews(sources, SHAPE, seed=0, batch_size=4, samples=4)
    return default_collate([views[index] for index in range(4)])


def test_the_loss_is_that_of_its_parts_computed_one_by_one(config: Config, batch: dict[str, torch.Tensor]) -> None:
    state = PretrainingState(config, None)
    student, teacher = state.student.encoder, state.teacher
    with torch.no_grad():
        targets, tokens, scores, patch_terms = [], [], [], []
        for view in range(2):
            cls, _ = teacher.encoder.class_and_patch_tokens(rgb(batch["global"][:, view]))
            targets.append(teacher.head(cls))
            own, _ = student.class_and_patch_tokens(rgb(batch["global"][:, view]), batch["masked"][:, view])
            tokens.append(own)
            scores.append(state.student.head(own))
        whole = sinkhorn_knopp(torch.cat(targets), 0.04)
        local = [state.student.head(student.class_and_patch_tokens(rgb(batch["local"][:, v]))[0]) for v in range(3)]
        global_part, local_part = class_token_losses(scores, local, whole.chunk(2))
        for encoder, head in ((student, state.student.head), (teacher.encoder, teacher.head)):
            each = []
            for view in range(2):
                masked = batch["masked"][:, view] if encoder is student else None
                _, patches = encoder.class_and_patch_tokens(rgb(batch["global"][:, view]), masked)
                each.append(head(patches)[batch["masked"][:, view]])
            patch_terms.append(torch.cat(each))
        masked = torch.cat([batch["masked"][:, 0], batch["masked"][:, 1]])
        places = masked.flatten().nonzero()[:, 0]
        patches = patch_loss(patch_terms[0], sinkhorn_knopp(patch_terms[1], 0.04), masked, places)
        spread = koleo_loss(tokens[0]) + koleo_loss(tokens[1])
    outcome = state.step([batch], 0, 0.0)
    parts = outcome.parts
    expected = {"loss_global": global_part, "loss_local": local_part, "loss_patch": patches, "loss_spread": spread}
    for name, value in expected.items():
        assert parts[name] == pytest.approx(float(value), abs=2e-4), name
    assert outcome.loss.item() == pytest.approx(float(global_part + local_part + patches + 0.1 * spread), abs=5e-4)
    assert 0 < parts["teacher_entropy"] <= math.log(16) + 1e-3
    assert parts["teacher_student_kl"] == pytest.approx(float(global_part) * 8 / 2 - parts["teacher_entropy"], abs=2e-3)


def test_a_step_moves_the_student_and_the_teacher_follows_by_its_momentum(
    config: Config, batch: dict[str, torch.Tensor]
) -> None:
    state = PretrainingState(config, None)
    before = {name: value.clone() for name, value in state.student.named_parameters()}
    assert all(torch.equal(before[name], value) for name, value in state.teacher.named_parameters())
    state.step([batch], 0, 0.5)
    still = [name for name, value in state.student.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    momentum = 0.996
    for name, value in state.teacher.named_parameters():
        expected = momentum * before[name] + (1 - momentum) * state.student.get_parameter(name)
        torch.testing.assert_close(value, expected, atol=1e-7, rtol=1e-5)


def test_the_prototypes_stand_still_at_first(config: Config, batch: dict[str, torch.Tensor]) -> None:
    state = PretrainingState(config, None)
    before = {name: value.clone() for name, value in state.student.named_parameters()}
    state.step([batch], 0, 0.005)
    still = [name for name, value in state.student.named_parameters() if torch.equal(value, before[name])]
    assert still == ["head.last_layer.length", "head.last_layer.direction"]


def test_accumulated_batches_are_averaged_and_a_broken_step_changes_nothing(
    config: Config, batch: dict[str, torch.Tensor]
) -> None:
    once, twice = (PretrainingState(config, None) for _ in range(2))
    once.step([batch], 0, 0.5)
    twice.step([batch, batch], 0, 0.5)
    for name, value in once.student.named_parameters():
        torch.testing.assert_close(twice.student.get_parameter(name), value, atol=2e-5, rtol=0)
    before = {name: value.clone() for name, value in once.teacher.state_dict().items()}
    broken = {**batch, "global": batch["global"] * float("nan")}
    assert not once.step([broken], 1, 0.5).is_finite
    assert all(torch.equal(before[name], value) for name, value in once.teacher.state_dict().items())


def test_rates_and_decays_of_the_groups(config: Config, batch: dict[str, torch.Tensor]) -> None:
    state = PretrainingState(config, None)
    state.step([batch], 0, 0.1)  # the end of the warm-up: the peak
    groups = {group["name"]: group for group in state._optimizer.param_groups}
    assert groups["head, decay"]["lr"] == pytest.approx(1e-3)
    assert groups["encoder, 1 layers below its end, decay"]["lr"] == pytest.approx(0.9e-3)
    assert groups["encoder, 5 layers below its end, patch embedding, decay"]["lr"] == pytest.approx(0.2 * 0.9**5 * 1e-3)
    decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(0.1 * math.pi))
    assert groups["head, decay"]["weight_decay"] == pytest.approx(decay)
    tokens = groups["encoder, 5 layers below its end, no decay"]
    assert tokens["weight_decay"] == 0
    assert {tuple(p.shape) for p in tokens["params"]} == {(1, 192), (1, 1, 192), (1, 257, 192)}  # mask, class, position


@pytest.mark.parametrize("name", ["dinov3_s16", "dinov2_s14_reg", "tiny"])
def test_encoders_with_a_mask_token_can_be_pretrained(name: str) -> None:
    check_encoder(ModelConfig(encoder=name))


@pytest.mark.parametrize("setting", ["encoder=vit_s16", "encoder=medsam_lite", "encoder=identity", "baseline=dynunet"])
def test_other_networks_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="a class token and a mask token") as error:
        check_encoder(load_config(None, [f"model.{setting}"]).model)
    assert f"model.{setting}" in str(error.value.found)
    assert "dinov2_s14" in str(error.value.expected)
    assert not is_pretrainable("clip_b16")


def test_the_effective_rank_of_known_matrices() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(6, 3)) == pytest.approx(1)
    assert effective_rank(torch.zeros(6, 3)) == 1
    halves = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(halves))


def test_neighbours_know_position_and_axis_where_the_tokens_do() -> None:
    position, axis = torch.linspace(0, 1, 11).repeat(2), torch.tensor([0] * 11 + [2] * 11)
    angle = position * 0.5 + axis * 1.2
    slices = MeasuredSlices(torch.stack([angle.cos(), angle.sin()], dim=1), torch.zeros(22, 3), axis, position)
    error, of_mean, accuracy = nearest_neighbours(slices, slices)
    assert error < 0.06
    assert of_mean == pytest.approx(np.abs(np.linspace(0, 1, 11) - 0.5).mean())
    assert accuracy == 1
    same = MeasuredSlices(torch.ones(22, 2), torch.zeros(22, 3), axis, position)
    assert nearest_neighbours(same, same)[0] > 0.2
    one = MeasuredSlices(slices.tokens[:11], slices.scores[:11], axis[:11], position[:11])
    assert nearest_neighbours(one, one)[2] is None


def test_a_collapse_shows_in_the_measures(config: Config, sources: list[SliceSource]) -> None:
    state = PretrainingState(config, None)
    healthy = measure(state, SHAPE, sources[:2], sources[2:], 0.07)
    assert healthy["val_rankme"] > 2
    assert healthy["val_assignment_kl"] >= 0
    with torch.no_grad():
        state.teacher.encoder.norm.weight.zero_()
        state.teacher.encoder.norm.bias.fill_(1)  # every slice has the same token
    collapsed = measure(state, SHAPE, sources[:2], sources[2:], 0.07)
    assert collapsed["val_rankme"] == pytest.approx(1, abs=1e-2)
    assert collapsed["val_assignment_kl"] == pytest.approx(0, abs=1e-3)
    assert collapsed["val_marginal_entropy"] <= math.log(16) + 1e-3


def test_views_of_the_same_pattern_get_the_same_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight patterns in noise: the loss falls below that of guessing, and the tokens tell them apart."""
    monkeypatch.setitem(CATALOGUE, "mini", replace(CATALOGUE["tiny"], width=48, depth=2, heads=2))
    settings = ["model.encoder=mini", "train.lr=1e-3", "pretrain.teacher_momentum=0.95", "train.warmup_fraction=0.1"]
    settings += ["pretrain.prototypes=64", "pretrain.head_width=128", "train.max_steps=60"]
    state = PretrainingState(load_config("pretrain", [*SMALL, *settings]), None)
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(8, 1, 14, 14, generator=generator)

    def views(kinds: torch.Tensor, count: int, pixels: int) -> torch.Tensor:
        images = torch.nn.functional.interpolate(patterns, (pixels, pixels), mode="bilinear")[kinds][:, None]
        noise = torch.randn(len(kinds), count, 1, pixels, pixels, generator=generator)
        return (images + 0.3 * noise) * (0.6 + 0.8 * torch.rand(len(kinds), count, 1, 1, 1, generator=generator))

    losses = []
    for step in range(60):
        kinds, masked = torch.arange(16) % 8, torch.zeros(16, 2, 16, dtype=torch.bool)
        masked[::2, 0, :4] = masked[1::2, 1, 5:12] = True
        batch = {"global": views(kinds, 2, 56), "local": views(kinds, 2, 28), "masked": masked}
        losses.append(state.step([batch], step, step / 60).parts)
    guessing = math.log(64)
    assert np.mean([one["loss_global"] + one["loss_local"] for one in losses[-5:]]) < guessing - 0.2
    with torch.no_grad():
        tokens, _ = state.teacher.encoder.class_and_patch_tokens(rgb(views(kinds, 1, 56)[:, 0]))
    units = torch.nn.functional.normalize(tokens - tokens.mean(dim=0), dim=1)
    same = (kinds[:, None] == kinds) & ~torch.eye(16, dtype=torch.bool)
    similar = units @ units.T
    assert similar[same].mean() > similar[kinds[:, None] != kinds].mean() + 0.2
