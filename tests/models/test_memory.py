"""The estimated peak of a training step, against real tensors and by its terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.made.plans import THICK, StubPlan
from volseg.config.schema import ModelConfig
from volseg.models.autocast import MetaAutocast
from volseg.models.build import build_model, count_parameters
from volseg.models.describe import describe_model
from volseg.models.memory import LivingStorages, step_peaks, training_memory
from volseg.training.losses import SegmentationLoss

TINY = {"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8}
LOSS = SegmentationLoss()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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
def test_it_is_the_peak_of_real_tensors(choice: dict[str, object], plan: StubPlan, dtype: torch.dtype) -> None:
    config = ModelConfig(**{**TINY, **choice})
    estimate = training_memory(config, plan, 2, LOSS, dtype=dtype)
    network = build_model(config, plan).train()
    depth, height, width = plan.patch_size
    patches = torch.randn(2, plan.num_channels, depth + 2 * network.halo, height, width)
    target = torch.randint(plan.num_classes, (2, depth, height, width))
    counts = count_parameters(network)
    assert estimate.weights == 8 * counts["total"]
    assert estimate.optimizer == 8 * counts["trainable"]

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)

    real = max(step_peaks(network, patches, target, LOSS, autocast))
    tolerance = 0.1 if dtype == torch.float32 else 0.2  # in bf16 a CPU has kernels of its own for short sequences
    assert estimate.activations == pytest.approx(real, rel=tolerance)


def test_gradients_of_earlier_batches_live_during_the_forward_pass() -> None:
    plan = StubPlan(patch_size=(16, 32, 32))
    one, several = (training_memory(ModelConfig(**TINY), plan, 1, LOSS, accumulates=on) for on in (False, True))
    assert several.activations - one.activations == one.optimizer // 2


def test_a_gpu_computes_norms_in_float32() -> None:
    plan, amounts = StubPlan(patch_size=(16, 32, 32)), {}
    for device in ("cpu", "cuda"):
        amounts[device] = training_memory(
            ModelConfig(**TINY), plan, 2, LOSS, device_type=device, dtype=torch.bfloat16
        ).activations
    assert amounts["cuda"] > 1.1 * amounts["cpu"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.linear(x, torch.ones(8, 8, device=x.device)),
        lambda x: x @ x,
        lambda x: torch.bmm(x[None], x[None]),
        lambda x: F.conv3d(x.view(1, 1, 1, 8, 8), torch.ones(1, 1, 1, 3, 3, device=x.device)),
        lambda x: F.layer_norm(x.bfloat16(), (8,)),
        lambda x: x.bfloat16().softmax(dim=1),
        lambda x: F.gelu(x.bfloat16()),
        lambda x: F.interpolate(x.bfloat16().view(1, 1, 8, 8), scale_factor=2, mode="bilinear"),
        lambda x: F.avg_pool3d(x.bfloat16().view(1, 1, 1, 8, 8), (1, 2, 2)),
        lambda x: x.bfloat16() + x,
    ],
)
def test_autocast_of_the_meta_device_gives_the_types_of_the_cpus(function: Callable[[Tensor], Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = function(torch.ones(8, 8)).dtype
    with MetaAutocast("cpu"):
        assert function(torch.ones(8, 8, device="meta")).dtype == expected


def test_a_weight_is_copied_once_while_autocast_is_on() -> None:
    weight = torch.nn.Parameter(torch.ones(8, 8, device="meta"))
    x = torch.ones(1, 8, device="meta")
    with LivingStorages() as living, MetaAutocast("cpu"):
        for _ in range(3):
            x = F.linear(x, weight)
    assert living.peak < 2 * 8 * 8 * 2


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
    plan = StubPlan(patch_size=(16, 32, 32))
    sizes = [training_memory(ModelConfig(**TINY), plan, batch, LOSS).total for batch in (1, 2, 4)]
    assert sizes == sorted(sizes)
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.1)
    assert training_memory(ModelConfig(**TINY), StubPlan(patch_size=(16, 32, 64)), 1, LOSS).total > sizes[0]
