from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.made.plans import StubPlan
from volseg.config.load import load_config
from volseg.config.schema import LOSSES
from volseg.errors import ConfigError
from volseg.training.losses import SegmentationLoss, build_loss, read_class_weights

NAMES = ("background", "liver", "tumour")
WEIGHTS = (0.5, 1.0, 4.0)


def logits_of(target: torch.Tensor, classes: int, confidence: float) -> torch.Tensor:
    one_hot = F.one_hot(target.clamp(min=0), classes).movedim(-1, 1)
    return one_hot.float() * confidence


def made(classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, K, 4, 4, 4) and class indices (2, 4, 4, 4)."""
    torch.manual_seed(0)
    return torch.randn(2, classes, 4, 4, 4) * 2, torch.randint(0, classes, (2, 4, 4, 4))


@pytest.mark.parametrize("kind", LOSSES)
def test_a_perfect_answer_costs_nothing(kind: str) -> None:
    target = torch.randint(0, 3, (2, 4, 4, 4))
    assert SegmentationLoss(kind)([logits_of(target, 3, 100.0)], target).item() == pytest.approx(0, abs=1e-4)


def test_uniform_logits_cost_what_the_formulas_say() -> None:
    target = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    target[0, 0] = 1  # half of the voxels are foreground, every probability is 1/2
    dice, cross_entropy, focal = 1 - 2 * (4 * 0.5) / (8 * 0.5 + 4), math.log(2), 0.5**2 * math.log(2)
    expected = {"dice": dice, "ce": cross_entropy, "focal": focal}
    for kind in LOSSES:
        loss = SegmentationLoss(kind)([torch.zeros(1, 2, 2, 2, 2)], target)
        assert loss.item() == pytest.approx(sum(expected[term] for term in kind.split("_")), abs=1e-5)


def test_dice_of_a_batch_and_of_each_patch() -> None:
    target = torch.zeros(2, 1, 1, 4, dtype=torch.int64)
    target[0, 0, 0, :3] = 1  # the second patch has no foreground
    logits = torch.zeros(2, 2, 1, 1, 4)
    of_batch = 1 - 2 * (3 * 0.5) / (8 * 0.5 + 3)
    of_patches = ((1 - 2 * (3 * 0.5) / (4 * 0.5 + 3)) + 1) / 2
    assert SegmentationLoss("dice")([logits], target).item() == pytest.approx(of_batch, abs=1e-5)
    assert SegmentationLoss("dice", batch_dice=False)([logits], target).item() == pytest.approx(of_patches, abs=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("batch", [True, False])
def test_the_losses_are_those_of_monai_and_torch(batch: bool, weights: tuple[float, ...] | None) -> None:
    from monai.losses.dice import DiceLoss
    from monai.losses.focal_loss import FocalLoss

    logits, target = made()
    one_hot = F.one_hot(target, 3).movedim(-1, 1).float()
    class_weights = torch.ones(3) if weights is None else torch.tensor(weights)
    focal = FocalLoss(use_softmax=True, gamma=3.0, weight=class_weights, reduction="none")(logits, one_hot)
    foreground = class_weights[1:] / class_weights[1:].mean()
    expected = {
        "dice": DiceLoss(include_background=False, softmax=True, batch=batch, weight=foreground)(logits, one_hot),
        "ce": F.cross_entropy(logits, target, class_weights),
        "focal": focal.sum() / class_weights[target].sum(),
    }
    for kind in LOSSES:
        loss = SegmentationLoss(kind, batch_dice=batch, class_weights=weights, focal_gamma=3.0)
        torch.testing.assert_close(loss([logits], target), sum(expected[term] for term in kind.split("_")))


REGIONS = ((1, 2), (2,))
"""Class indices of two regions: the second lies within the first."""


@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_the_losses_of_regions_are_those_of_monai_and_torch(weights: tuple[float, ...] | None) -> None:
    from monai.losses.dice import DiceLoss
    from monai.losses.focal_loss import FocalLoss

    logits, target = made()
    logits = logits[:, :2]
    truth = torch.stack([target > 0, target == 2], dim=1).float()
    class_weights = (torch.ones(2) if weights is None else torch.tensor(weights)) / (2 if weights else 1)
    voxel_weights = class_weights.view(2, 1, 1, 1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = FocalLoss(gamma=2.0, reduction="none")(logits, truth)
    expected = {
        "dice": DiceLoss(sigmoid=True, batch=True, weight=class_weights)(logits, truth),
        "ce": (cross_entropy * voxel_weights).mean(),
        "focal": (focal * voxel_weights).mean(),
    }
    for kind in LOSSES:
        loss = SegmentationLoss(kind, class_weights=weights, region_indices=REGIONS)
        torch.testing.assert_close(loss([logits], target), sum(expected[term] for term in kind.split("_")))


@pytest.mark.parametrize("kind", LOSSES)
def test_ignored_voxels_do_not_count_in_regions(kind: str) -> None:
    logits, target = made()
    logits, other = logits[:, :2].requires_grad_(), logits[:, :2].clone()
    target[:, 2:] = -1
    other[:, :, 2:] = 7
    loss = SegmentationLoss(kind, class_weights=(1.0, 3.0), region_indices=REGIONS)
    torch.testing.assert_close(loss([logits], target), loss([other], target), rtol=0, atol=0)
    torch.testing.assert_close(loss([logits], target), loss([logits[:, :, :2]], target[:, :2]))
    loss([logits], target).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].abs().min() > 0


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, target = made()
    target[0, :2] = -1
    focal = SegmentationLoss("focal", focal_gamma=0.0, class_weights=WEIGHTS)
    cross_entropy = SegmentationLoss("ce", class_weights=WEIGHTS)
    torch.testing.assert_close(focal([logits], target), cross_entropy([logits], target))


@pytest.mark.parametrize("kind", LOSSES)
def test_only_the_ratios_of_class_weights_matter(kind: str) -> None:
    logits, target = made()
    losses = [
        SegmentationLoss(kind, class_weights=[factor * weight for weight in WEIGHTS])([logits], target)
        for factor in (1, 10)
    ]
    torch.testing.assert_close(*losses)
    assert not torch.isclose(losses[0], SegmentationLoss(kind)([logits], target))
    without_liver = SegmentationLoss(kind, class_weights=(0, 0, 1))([logits], target)
    swapped = logits[:, [1, 0, 2]], torch.tensor([1, 0, 2])[target]
    torch.testing.assert_close(without_liver, SegmentationLoss(kind, class_weights=(0, 0, 1))([swapped[0]], swapped[1]))


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("kind", LOSSES)
def test_ignored_voxels_do_not_count(kind: str, batch: bool) -> None:
    logits, target = made()
    target[:, 2:] = -1
    other = logits.clone()
    other[:, :, 2:] = torch.randn(2, 3, 2, 4, 4) * 10
    loss = SegmentationLoss(kind, batch_dice=batch, class_weights=WEIGHTS)
    torch.testing.assert_close(loss([logits], target), loss([other], target), rtol=0, atol=0)
    torch.testing.assert_close(loss([logits], target), loss([logits[:, :, :2]], target[:, :2]))
    logits.requires_grad_()
    loss([logits], target).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].abs().min() > 0


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    logits, target = made()
    target[0, 0, 0] = -1
    loss = SegmentationLoss(kind, class_weights=WEIGHTS)
    logits = logits.requires_grad_()
    loss([logits], target).backward()
    assert logits.grad is not None
    direction, step = torch.sign(logits.grad), 1e-2  # a direction in which float32 resolves the difference
    with torch.no_grad():
        difference = loss([logits + step * direction], target) - loss([logits - step * direction], target)
    assert difference.item() / (2 * step) == pytest.approx((logits.grad * direction).sum().item(), rel=2e-3)


@pytest.mark.parametrize("kind", LOSSES)
def test_nothing_but_ignored_voxels_gives_a_finite_loss_and_gradient(kind: str) -> None:
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    loss = SegmentationLoss(kind, class_weights=(1.0, 2.0))([logits], torch.full((1, 2, 2, 2), -1))
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


def test_class_weights_by_name_or_in_order() -> None:
    assert read_class_weights(None, NAMES) is None
    assert read_class_weights({"tumour": 3, "background": 0.5}, NAMES) == (0.5, 1.0, 3.0)
    assert read_class_weights([1, 2, 0], NAMES) == (1.0, 2.0, 0.0)
    assert read_class_weights({"tumour": 3}, NAMES[1:], background=False) == (1.0, 3.0)
    settings = load_config(None, ["train.class_weights={organ2: 4, background: 0.5}", "train.loss=ce"]).train
    logits, target = made()
    expected = F.cross_entropy(logits, target, torch.tensor(WEIGHTS))
    torch.testing.assert_close(build_loss(settings, StubPlan())([logits], target), expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"tumor": 2}, "unknown name(.|\n)*did you mean tumour"),
        ([1, 2], "one weight for each class(.|\n)*3 weights: background, liver, tumour"),
        ({"liver": 0, "tumour": 0}, "no class but the background"),
    ],
)
def test_class_weights_that_do_not_fit_the_classes(setting: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_class_weights(setting, NAMES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.class_weights=2", "are not weights"),
        ("train.class_weights=[1, -1]", "are not weights"),
        ("train.class_weights={liver: true}", "are not weights"),
        ("train.class_weights=[1, .inf]", "are not weights"),
        ("train.loss=dice_bce", "no such choice(.|\n)*dice_ce, dice_focal, dice, ce, focal"),
        ("train.focal_gamma=-1", "focal_gamma is out of range"),
        ("train.accumulate=0", "accumulate is out of range"),
    ],
)
def test_settings_of_the_loss_are_checked(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])
