"""The whole network: what it keeps for the backward pass, and what it need not keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.made.encoders import small_entry
from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.models.build import build_model
from volseg.models.contracts import ImageEncoder
from volseg.models.describe import kept_bytes

PLAN = StubPlan(patch_size=(6, 16, 16))
CONFIG = ModelConfig(encoder="dinov2_s14", weights="random", features=2, max_features=4, drop_path=0.5)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = small_entry(width=16, depth=4, heads=2, swiglu=True, registers=1, grid=3)
    monkeypatch.setitem(CATALOGUE, "dinov2_s14", entry)


def made(**choice: object) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(replace(CONFIG, **choice), PLAN).train()
    nn.init.normal_(model.aggregator.proj.weight, std=0.1)
    return model


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(3)  # drop path
    loss = sum(level.square().mean() for level in model(image()))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def kept_by_encoder(model: nn.Module) -> int:
    """What autograd keeps of one pass through the encoder."""
    taps: list[torch.Tensor] = []
    kept = kept_bytes(model, model.parts(), lambda: taps.extend(model.encode(image())))
    assert taps[0].requires_grad is (not model.encoder.frozen)
    return kept.get("encoder", 0)


@pytest.mark.parametrize("chunk", [12, 5])
def test_checkpointing_gives_the_same_loss_and_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece with drop path on (the second run of a block draws what the first drew), or in chunks of slices."""
    monkeypatch.setattr(ImageEncoder, "chunk_pixels", chunk * 28 * 28)
    rate = 0.5 if chunk == 12 else 0.0  # chunks draw in another order
    plain, checkpointed = (made(drop_path=rate, checkpoint_encoder=choice) for choice in (False, True))
    calls: list[int] = []
    checkpointed.encoder.vit.patch_embed.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    for one, other in zip(loss_and_gradients(plain), loss_and_gradients(checkpointed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert calls == {12: [12], 5: [5, 5, 2]}[chunk]


def test_what_the_encoder_keeps_for_the_backward_pass() -> None:
    full, checkpointed, frozen = (
        kept_by_encoder(made(**choice)) for choice in ({}, {"checkpoint_encoder": True}, {"adaptation": "frozen"})
    )
    assert frozen == 0
    assert 0 < checkpointed < full / 4


def test_checkpointing_does_nothing_without_a_graph() -> None:
    model = made(checkpoint_encoder=True).eval()
    with torch.no_grad():
        assert torch.equal(model(image()), made().eval()(image()))
