"""Cost of the parts: by hand, and against what autograd keeps of real tensors."""

from __future__ import annotations

import pytest
import torch

from tests.made.plans import THICK, StubPlan
from volseg.config.schema import ModelConfig
from volseg.models.build import build_model, count_parameters
from volseg.models.describe import describe_model, kept_bytes

TINY = {"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8}
CHOICES = [
    {},
    {"attention": "math"},
    {"adaptation": "frozen"},
    {"checkpoint_encoder": True},
    {"aggregator": "conv", "decoder": "unet2d"},
    {"aggregator": "none", "decoder": "linear"},
    {"stem": False},
    {"encoder": "identity"},
]


def test_multiply_accumulates_by_hand() -> None:
    plan = StubPlan()  # 8 slices of 2 x 2 tokens, 8 voxels each
    config = ModelConfig(**TINY, aggregator="conv", decoder="linear")
    encoder, aggregator, decoder = describe_model(config, plan, batch_size=1)
    width, blocks, tokens, slices = 192, 4, 1 + 4, 8
    block = (
        12 * width**2 * tokens + 2 * tokens**2 * width
    )  # qkv, proj and MLP; scores and their product with the values
    assert encoder.macs == slices * (blocks * block + 4 * width * 2 * 14 * 14)  # 2 channels: slice and neighbours
    assert aggregator.macs == slices * 4 * (width**2 + 5 * width)
    assert decoder.macs == slices * 4 * width * 3
    assert [part.strides for part in (encoder, aggregator, decoder)] == [((1, 8, 8),), ((1, 8, 8),), ((1, 1, 1),)]


def test_kept_activations_by_hand() -> None:
    """The probe keeps the input of its classifier; its bilinear upsampling keeps nothing."""
    config = ModelConfig(**TINY, adaptation="frozen", aggregator="none", decoder="linear")
    costs = {part.name: part for part in describe_model(config, StubPlan(), batch_size=3)}
    assert costs["encoder"].kept_bytes == costs["aggregator"].kept_bytes == 0
    assert costs["decoder"].kept_bytes == 3 * 8 * 4 * 192 * 4
    assert (costs["encoder"].trainable, costs["decoder"].trainable) == (0, 193 * 3)


@pytest.mark.parametrize("plan", [StubPlan(), THICK], ids=["isotropic", "thick"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_it_tells_what_a_real_network_keeps(choice: dict[str, object], plan: StubPlan) -> None:
    config = ModelConfig(**{**TINY, **choice})
    costs = describe_model(config, plan, batch_size=2)
    torch.manual_seed(0)
    network = build_model(config, plan).train()
    depth, height, width = plan.patch_size
    x = torch.randn(2, plan.num_channels, depth + 2, height, width)
    real = kept_bytes(network, network.parts(), lambda: network(x))
    assert "other" not in real
    for part in costs:
        assert part.kept_bytes == pytest.approx(real.get(part.name, 0), rel=0.1, abs=20_000), part.name
    counts = count_parameters(network)
    assert sum(part.parameters for part in costs) == counts["total"]
    assert sum(part.trainable for part in costs) == counts["trainable"]
    assert all(part.macs > 0 for part in costs) or choice.get("aggregator") == "none"


def test_a_baseline_is_one_part() -> None:
    config = ModelConfig(baseline="dynunet")
    (network,) = describe_model(config, StubPlan(), batch_size=1)
    assert network.name == "network"
    assert network.parameters == count_parameters(build_model(config, StubPlan()))["total"]
    assert network.macs > 10**8
    assert network.kept_bytes > 10**6
    assert network.strides[0] == (1, 1, 1)
