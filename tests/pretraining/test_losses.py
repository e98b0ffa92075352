"""The losses of pretraining against values by hand and independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from volseg.pretraining import losses
from volseg.pretraining.heads import DinoHead, Prototypes
from volseg.pretraining.losses import class_token_losses, koleo_loss, patch_loss, sinkhorn_knopp


def test_sinkhorn_knopp_is_that_of_the_paper_in_float64() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 4))
    assigned = np.exp(scores / 0.5)
    assigned /= assigned.sum()
    for _ in range(losses.SINKHORN_ITERATIONS):
        assigned /= assigned.sum(axis=0, keepdims=True) * 4
        assigned /= assigned.sum(axis=1, keepdims=True) * 6
    result = sinkhorn_knopp(torch.from_numpy(scores), 0.5)
    np.testing.assert_allclose(result, assigned * 6, rtol=1e-4)


def test_sinkhorn_knopp_has_rows_of_one_and_uses_all_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "SINKHORN_ITERATIONS", 200)
    scores = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    scores[:, 0] += 3  # the teacher prefers a prototype
    assigned = sinkhorn_knopp(scores, 0.5)
    torch.testing.assert_close(assigned.sum(dim=1), torch.ones(12))
    torch.testing.assert_close(assigned.sum(dim=0), torch.full((4,), 3.0), atol=1e-3, rtol=0)


def test_sinkhorn_knopp_does_not_overflow_and_knows_no_shift() -> None:
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    shifted = sinkhorn_knopp(scores + 1000, 0.07)
    torch.testing.assert_close(shifted, sinkhorn_knopp(scores, 0.07), atol=1e-2, rtol=0)
    assert sinkhorn_knopp(torch.zeros(0, 3), 0.1).shape == (0, 3)


def test_the_class_tokens_of_two_prototypes_by_hand() -> None:
    """Scores of 0.1 times a logarithm of odds, so that the student's probabilities are 3/4 and 1/4."""
    student = torch.tensor([[0.1 * math.log(3), 0.0]])
    targets = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])]
    first, second = -math.log(0.75), -0.5 * (math.log(0.75) + math.log(0.25))
    crossed, local = class_token_losses([student, student], [student], targets)
    assert crossed.item() == pytest.approx((first + second) / 4, rel=1e-5)
    assert local.item() == pytest.approx((first + second) / 4, rel=1e-5)
    crossed, local = class_token_losses([student, student], [], targets)
    assert (crossed.item(), local.item()) == (pytest.approx((first + second) / 2, rel=1e-5), 0)


def test_a_global_view_is_compared_with_the_other_one_alone() -> None:
    right = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]])
    swapped = [torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])]
    assert class_token_losses(right, [], swapped)[0].item() == pytest.approx(0)
    assert class_token_losses(right, [], swapped[::-1])[0].item() > 100


def test_the_patch_loss_is_a_mean_of_means_over_images() -> None:
    masked = torch.tensor([[True, False, False], [True, True, True], [False, False, False]])
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    each = [-(t * F.log_softmax(s / 0.1, dim=0)).sum().item() for s, t in zip(scores, targets, strict=True)]
    places = masked.flatten().nonzero()[:, 0]
    loss = patch_loss(scores, targets, masked, places).item()
    assert loss == pytest.approx((each[0] + sum(each[1:]) / 3) / 3, rel=1e-5)
    none = patch_loss(scores[:0], targets[:0], torch.zeros(2, 3, dtype=torch.bool), places[:0])
    assert none.item() == 0


def test_koleo_by_brute_force() -> None:
    tokens = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    units = tokens / tokens.norm(dim=1, keepdim=True)
    nearest = [min((units[i] - units[j]).norm().item() for j in range(7) if j != i) for i in range(7)]
    assert koleo_loss(tokens).item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-4)
    opposite = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert koleo_loss(opposite).item() == pytest.approx(-math.log(2), abs=1e-5)
    assert koleo_loss(tokens[:1]).item() == 0
    assert koleo_loss(torch.ones(3, 2)).isfinite()


def test_koleo_moves_neighbours_apart() -> None:
    tokens = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    before = koleo_loss(tokens)
    (gradient,) = torch.autograd.grad(before, tokens)
    assert koleo_loss(tokens - 0.01 * gradient) < before


def test_a_head_compares_directions_only() -> None:
    torch.manual_seed(0)
    head = DinoHead(width=6, hidden=8, prototypes=5)
    scores = head(torch.randn(3, 6))
    assert scores.shape == (3, 5)
    assert scores.abs().max() <= 1  # both sides have length 1
    layer = Prototypes(4, 2)
    before = layer(torch.ones(1, 4))
    with torch.no_grad():
        layer.direction *= 3
        torch.testing.assert_close(layer(torch.ones(1, 4)), before)
        layer.length *= 2
        torch.testing.assert_close(layer(torch.ones(1, 4)), 2 * before)
