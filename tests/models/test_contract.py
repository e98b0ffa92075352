"""One contract for every encoder x aggregator x adaptation, and for the baseline (STYLE 10)."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from models.plans import THICK, StubPlan
from volseg.config.schema import ModelConfig
from volseg.models import dinov2
from volseg.models.build import build_model
from volseg.models.layers import DropPath

SMALL = dinov2.Variant(width=32, depth=2, heads=2, swiglu=True, registers=2, grid=5)
CASES = [
    *[(e, a, m) for e, a, m in product(("small", "tiny"), ("none", "attention"), ("full", "frozen"))],
    ("identity", "none", "full"),
    ("dynunet", "none", "full"),
]
PLANS = {"isotropic": StubPlan(), "thick": THICK}


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    encoder, aggregator, adaptation = request.param
    monkeypatch.setitem(dinov2.VARIANTS, "dinov2_s14", SMALL)  # "small": an encoder of another depth and kind
    name = {"small": "dinov2_s14", "dynunet": "identity"}.get(encoder, encoder)
    baseline = "dynunet" if encoder == "dynunet" else None
    settings = {"encoder": name, "aggregator": aggregator, "adaptation": adaptation, "baseline": baseline}
    return ModelConfig(**settings, weights="random", features=4, max_features=8, drop_path=0.2)


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> StubPlan:
    return PLANS[request.param]


@pytest.fixture
def model(config: ModelConfig, plan: StubPlan) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config, plan)


def image(plan: StubPlan, model: nn.Module, batch: int = 1, size: tuple[int, int, int] | None = None) -> torch.Tensor:
    depth, height, width = size or plan.patch_size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, plan.num_channels, depth + 2 * model.halo, height, width, generator=generator)


def fill_zero_weights(model: nn.Module) -> None:
    """Residuals that start at zero would hide the parameters behind them."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def test_training_returns_logits_at_every_published_stride(model: nn.Module, plan: StubPlan) -> None:
    logits = model.train()(image(plan, model, batch=2))
    strides = [(1, 1, 1), *model.deep_strides]
    expected = [tuple(-(-n // s) for n, s in zip(plan.patch_size, stride, strict=True)) for stride in strides]
    assert [tuple(level.shape) for level in logits] == [(2, plan.num_classes, *size) for size in expected]
    assert len(logits) >= 2


@pytest.mark.parametrize("size", [(8, 16, 16), (5, 13, 19), (1, 17, 16)])
def test_evaluation_returns_the_input_size(model: nn.Module, plan: StubPlan, size: tuple[int, int, int]) -> None:
    with torch.no_grad():
        logits = model.eval()(image(plan, model, size=size))
    assert logits.shape == (1, plan.num_classes, *size)
    assert logits.isfinite().all()


def test_gradient_reaches_every_trainable_parameter_and_no_frozen_one(model: nn.Module, plan: StubPlan) -> None:
    fill_zero_weights(model.train())
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0  # a dropped branch has no gradient by chance
    logits = model(image(plan, model, batch=2))
    sum(level.square().mean() for level in logits).backward()
    named = dict(model.named_parameters())
    without = [name for name, p in named.items() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert [name for name, p in named.items() if not p.requires_grad and p.grad is not None] == []


def test_a_sample_does_not_depend_on_the_rest_of_the_batch(model: nn.Module, plan: StubPlan) -> None:
    fill_zero_weights(model.double().eval())
    x = image(plan, model, batch=3).double()
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=0, atol=1e-9)


def test_save_and_load_is_bit_equal_and_evaluation_deterministic(
    model: nn.Module, config: ModelConfig, plan: StubPlan
) -> None:
    torch.manual_seed(5)
    other = build_model(config, plan)
    other.load_state_dict(model.state_dict(), strict=True)
    x = image(plan, model)
    with torch.no_grad():
        first, second, third = model.eval()(x), model(x), other.eval()(x)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_encode_then_decode_is_forward(model: nn.Module, config: ModelConfig, plan: StubPlan) -> None:
    if config.baseline:
        pytest.skip("a baseline has no encoder to share")
    x = image(plan, model, size=(6, 18, 21))
    fill_zero_weights(model.eval())
    with torch.no_grad():
        taps = model.encode(x)
        logits = model.decode(taps, x[:, :, 1:-1])
        assert torch.equal(logits, model(x))
    assert [tuple(tap.shape[2:]) for tap in taps] == [(6, -(-18 // plan.token_stride), -(-21 // plan.token_stride))] * (
        0 if config.encoder == "identity" else len(model.encoder.spec)
    )


def test_frozen_means_no_graph_and_evaluation_mode(model: nn.Module, config: ModelConfig, plan: StubPlan) -> None:
    if config.adaptation != "frozen":
        pytest.skip("only the frozen encoder")
    model.train()
    assert model.training
    assert not any(module.training for module in model.encoder.modules())
    assert not any(tap.requires_grad for tap in model.encode(image(plan, model)))
