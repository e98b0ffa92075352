"""One contract for every encoder, aggregator, decoder and adaptation, and for the baseline (STYLE 10).

The choices come from schema and catalogue, so new ones are included. Encoders that differ in numbers only become equal
when their numbers are made small, and are tested once. All combinations are tested with the first encoder. The others
meet every adaptation, and every aggregator and decoder: those depend on the shapes of the taps alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from tests.made.plans import THICK, StubPlan
from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.config.schema import ADAPTATIONS, AGGREGATORS, DECODERS, ModelConfig
from volseg.errors import ConfigError
from volseg.models.build import build_model
from volseg.models.encoders import tiny_vit
from volseg.models.encoders.layers import DropPath

SMALL = {"weights": "random", "features": 2, "max_features": 4, "drop_path": 0.2}
ISOTROPIC = StubPlan(patch_size=(4, 16, 16), decoder_strides=((1, 1, 1), (2, 2, 2), (2, 4, 4), (4, 8, 8)))
PLANS = {"isotropic": ISOTROPIC, "thick": replace(THICK, patch_size=(3, 8, 12))}


def shrunk(name: str) -> EncoderEntry:
    """The encoder's structure with the smallest numbers."""
    entry = CATALOGUE[name]
    patch = entry.patch if entry.module.endswith("tiny_vit") else 8  # its stages are 1, 2 and 4 pixels a token
    small = replace(entry, patch=patch, width=16, depth=2, heads=2, registers=min(entry.registers, 1), grid=3)
    return replace(small, url=None, weights=None)


ENTRIES = {name: shrunk(name) for name in CATALOGUE}
KINDS = {entry: name for name, entry in reversed(ENTRIES.items())}  # the first name of each structure


def choices() -> Iterator[dict[str, object]]:
    first, *others = KINDS.values()
    for aggregator, decoder, adaptation in product(AGGREGATORS, DECODERS, ADAPTATIONS):
        yield {"encoder": first, "aggregator": aggregator, "decoder": decoder, "adaptation": adaptation}
    for encoder in others:
        yield {"encoder": encoder, "aggregator": "none", "decoder": "linear", "adaptation": "linear"}
        for index, adaptation in enumerate(choice for choice in ADAPTATIONS if choice != "linear"):
            parts = {"aggregator": AGGREGATORS[index % len(AGGREGATORS)], "decoder": DECODERS[index % len(DECODERS)]}
            yield {"encoder": encoder, **parts, "adaptation": adaptation}
    for encoder in KINDS.values():
        yield {"encoder": encoder, "stem": False, "adaptation": "full"}
        yield {"encoder": encoder, "checkpoint_encoder": True}
    for decoder in DECODERS:  # no aggregator or adaptation: there is nothing to mix or to adapt
        yield {"encoder": "identity", "decoder": decoder}
    yield {"encoder": "identity", "baseline": "dynunet"}  # the others are large: test_baselines.py


def params() -> Iterator[object]:
    for index, choice in enumerate(choices()):
        name = "-".join(str(value) if isinstance(value, str) else key for key, value in choice.items())
        plan = (
            "isotropic" if "baseline" in choice else list(PLANS)[(index + index // len(ADAPTATIONS)) % 2]
        )  # each choice meets both plans somewhere
        try:
            config, marks = ModelConfig(**{**SMALL, **choice}), ()
        except ConfigError as error:  # refused by design: the message is the reason
            config, marks = None, (pytest.mark.skip(reason=error.problem),)
        yield pytest.param((config, PLANS[plan]), id=f"{name}-{plan}", marks=marks)


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in ENTRIES.items():
        monkeypatch.setitem(CATALOGUE, name, entry)
    for name, numbers in {"WIDTHS": (4, 6, 8, 16), "DEPTHS": (1, 1, 1, 1), "HEADS": (1, 2, 2, 2)}.items():
        monkeypatch.setattr(tiny_vit, name, numbers)


@pytest.fixture(params=params())
def case(request: pytest.FixtureRequest) -> tuple[ModelConfig, StubPlan]:
    return request.param


@pytest.fixture
def config(case: tuple[ModelConfig, StubPlan]) -> ModelConfig:
    return case[0]


@pytest.fixture
def plan(case: tuple[ModelConfig, StubPlan]) -> StubPlan:
    return case[1]


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


def test_training_reaches_every_trainable_parameter_and_no_frozen_one(
    model: nn.Module, config: ModelConfig, plan: StubPlan
) -> None:
    fill_zero_weights(model.train())
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0  # a dropped branch has no gradient
    logits = model(image(plan, model, batch=2))
    strides = [(1, 1, 1), *model.deep_strides]
    expected = [tuple(-(-n // s) for n, s in zip(plan.patch_size, stride, strict=True)) for stride in strides]
    assert [tuple(level.shape) for level in logits] == [(2, plan.num_classes, *size) for size in expected]
    assert config.decoder != "unetr" or len(logits) >= 2

    generator = torch.Generator().manual_seed(2)  # a random direction: a norm makes sums and squares constant
    sum((level * torch.randn(level.shape, generator=generator)).sum() for level in logits).backward()
    named = dict(model.named_parameters())
    without = [name for name, p in named.items() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert [name for name, p in named.items() if not p.requires_grad and p.grad is not None] == []


def test_any_size_one_by_one_or_in_a_batch(model: nn.Module, config: ModelConfig, plan: StubPlan) -> None:
    fill_zero_weights(model.double().eval())
    with torch.no_grad():
        for size in ((1, 17, 16), (5, 13, 9)):
            x = image(plan, model, batch=3, size=size).double()
            logits = model(x)
            assert logits.shape == (3, plan.num_classes, *size)
            assert logits.isfinite().all()
        torch.testing.assert_close(logits[1:2], model(x[1:2]), rtol=0, atol=1e-9)
        if config.baseline:
            return  # no encoder to share
        taps = model.encode(x)
        assert torch.equal(model.decode(taps, x[:, :, 1:-1]), logits)
    height, width = (-(-side // plan.token_stride) * plan.token_stride for side in (13, 9))
    strides = [] if config.encoder == "identity" else [stride[1] for stride in model.encoder.spec.strides]
    assert [tuple(tap.shape[2:]) for tap in taps] == [(5, height // step, width // step) for step in strides]


def test_save_and_load_is_bitwise_identical_and_evaluation_deterministic(
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


def test_frozen_means_no_graph_and_evaluation_mode() -> None:
    for decoder in DECODERS:
        model = build_model(ModelConfig(**SMALL, decoder=decoder, adaptation="frozen"), ISOTROPIC).train()
        assert model.training
        assert not any(module.training for module in model.encoder.modules())
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            taps = model.encode(image(ISOTROPIC, model))
        assert not any(tap.requires_grad or tap.grad_fn for tap in taps)
        assert kept == []  # no activation is kept for a backward pass
