from __future__ import annotations

import math

import pytest
import torch

from volseg.training.losses import SegmentationLoss


def logits_of(target: torch.Tensor, classes: int, confidence: float) -> torch.Tensor:
    one_hot = torch.nn.functional.one_hot(target.clamp(min=0), classes).movedim(-1, 1)
    return one_hot.float() * confidence


def test_a_perfect_answer_costs_nothing() -> None:
    target = torch.randint(0, 3, (2, 4, 4, 4))
    assert SegmentationLoss()([logits_of(target, 3, 100.0)], target).item() == pytest.approx(0, abs=1e-4)


def test_uniform_logits_cost_what_the_formula_says() -> None:
    target = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    target[0, 0] = 1  # half of the voxels are foreground, every probability is 1/2
    dice = 1 - 2 * (4 * 0.5) / (8 * 0.5 + 4)
    loss = SegmentationLoss()([torch.zeros(1, 2, 2, 2, 2)], target)
    assert loss.item() == pytest.approx(dice + math.log(2), abs=1e-5)


def test_ignored_voxels_do_not_count() -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 3, (1, 4, 4, 4))
    logits = torch.randn(1, 3, 4, 4, 4)
    target[:, 2:] = -1
    other = logits.clone()
    other[:, :, 2:] = torch.randn(1, 3, 2, 4, 4) * 10
    loss = SegmentationLoss()
    torch.testing.assert_close(loss([logits], target), loss([other], target))
    torch.testing.assert_close(loss([logits], target), loss([logits[:, :, :2]], target[:, :2]))


def test_nothing_but_ignored_voxels_gives_a_finite_loss_and_gradient() -> None:
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    loss = SegmentationLoss()([logits], torch.full((1, 2, 2, 2), -1))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_coarser_levels_weigh_half_as_much() -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 2, (1, 4, 4, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine, coarse = torch.randn(1, 2, 8, 8, 8), torch.randn(1, 2, 4, 4, 4)
    loss = SegmentationLoss()
    expected = (loss([fine], target) + 0.5 * loss([coarse], target[:, ::2, ::2, ::2])) / 1.5
    torch.testing.assert_close(loss([fine, coarse], target), expected)


def test_the_loss_is_computed_in_float32() -> None:
    target = torch.randint(0, 2, (1, 4, 4, 4))
    assert SegmentationLoss()([torch.randn(1, 2, 4, 4, 4, dtype=torch.bfloat16)], target).dtype == torch.float32
