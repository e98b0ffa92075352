"""The estimated peak of a training step, against real tensors and by its terms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.made.plans import THICK, StubPlan
from volseg.config.schema import ModelConfig
from volseg.models.build import build_model, count_parameters
from volseg.models.describe import describe_model
from volseg.models.memory import LivingStorages, step_peak, training_memory
from volseg.training.losses import SegmentationLoss

TINY = {"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8}
LOSS = SegmentationLoss()


@pytest.mark.parametrize(
    ("choice", "plan"),
    [
        ({}, StubPlan()),
        ({"adaptation": "frozen"}, THICK),
        ({"checkpoint_encoder": True}, StubPlan()),
        ({"encoder": "identity"}, THICK),
    ],
    ids=str,
)
def test_it_is_the_peak_of_real_tensors(choice: dict[str, object], plan: StubPlan) -> None:
    config = ModelConfig(**{**TINY, **choice})
    estimate = training_memory(config, plan, 2, LOSS)
    network = build_model(config, plan).train()
    depth, height, width = plan.patch_size
    patches = torch.randn(2, plan.num_channels, depth + 2 * network.halo, height, width)
    target = torch.randint(plan.num_classes, (2, depth, height, width))
    counts = count_parameters(network)
    assert estimate.weights == 8 * counts["total"]
    assert estimate.optimizer == 12 * counts["trainable"]
    assert estimate.activations == pytest.approx(step_peak(network, patches, target, LOSS), rel=0.1)


def test_storages_count_from_their_creation_until_they_are_freed() -> None:
    with LivingStorages() as living:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        assert living.now == 4000
        second = view + 1
        assert (living.now, living.peak) == (8000, 8000)
        del first, view
        assert living.now == 4000
        (second * 2).sum()
    assert living.peak == 8000 + 4


def test_it_counts_what_describe_counts_and_the_loss_of_every_class() -> None:
    plan = StubPlan(patch_size=(16, 32, 32))
    needed = {}
    for classes in (3, 103):
        many = replace(plan, num_classes=classes)
        needed[classes] = training_memory(ModelConfig(**TINY), many, 2, LOSS).activations
        assert needed[classes] > sum(part.kept_bytes for part in describe_model(ModelConfig(**TINY), many, 2))
    logits = 2 * 100 * 16 * 32 * 32 * 4
    assert needed[103] - needed[3] > 4 * logits  # logits, their softmax and logarithm, and one-hot labels of 8 bytes


def test_it_grows_with_patch_and_batch() -> None:
    sizes = [training_memory(ModelConfig(**TINY), StubPlan(), batch, LOSS).total for batch in (1, 2, 4)]
    assert sizes == sorted(sizes)
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.1)
    assert training_memory(ModelConfig(**TINY), StubPlan(patch_size=(16, 16, 16)), 1, LOSS).total > sizes[0]
