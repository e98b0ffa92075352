"""LoRA: the start is the pretrained layer, the sum is exact, the names stay official."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.made.encoders import small_entry
from volseg.config.encoders import EncoderEntry
from volseg.models.encoders.dinov2 import DinoV2
from volseg.models.lora import LoraLinear, add_lora, is_lora, merge_lora, merged_state

MLP = small_entry(width=32, depth=2, heads=2, grid=5)
SWIGLU = small_entry(width=32, depth=2, heads=2, swiglu=True, registers=2, grid=5)


def vit(entry: EncoderEntry = MLP) -> DinoV2:
    torch.manual_seed(0)
    return DinoV2(entry).eval()


def adapted(entry: EncoderEntry = MLP, *, noise: bool = True, mlp: bool = True, dropout: float = 0.0) -> DinoV2:
    """A transformer with LoRA, its second matrices filled so that they do something."""
    model = vit(entry).requires_grad_(False)
    layers = (*model.attention_layers, *(model.mlp_layers if mlp else ()))
    add_lora(model, layers, rank=3, alpha=6.0, dropout=dropout)
    if noise:
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                nn.init.normal_(parameter, std=0.1)
    return model


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 42, 28, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_the_layer_is_the_formula() -> None:
    linear = nn.Linear(2, 1)
    layer = LoraLinear(linear, rank=2, alpha=4.0, dropout=0.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.fill_(0.5)
        layer.lora_a.copy_(torch.tensor([[1.0, 1.0], [0.0, -1.0]]))
        layer.lora_b.copy_(torch.tensor([[3.0, 5.0]]))
    # 1 * 10 + 2 * 20 + 0.5 + 4 / 2 * (3 * 30 + 5 * -20)
    assert layer(torch.tensor([10.0, 20.0])).item() == 30.5
    assert layer.merged_weight().tolist() == [[7.0, -2.0]]  # 1 + 2 * 3, 2 + 2 * (3 - 5)
    assert layer.merged()(torch.tensor([10.0, 20.0])).item() == 30.5


@pytest.mark.parametrize("entry", [MLP, SWIGLU])
@pytest.mark.parametrize("mlp", [False, True])
def test_the_initial_network_is_bitwise_identical(entry: EncoderEntry, mlp: bool) -> None:
    start = adapted(entry, noise=False, mlp=mlp, dropout=0.5)
    for model in (start.eval(), start.train()):
        assert torch.equal(model(images()), vit(entry)(images()))
    assert all(p.any() for name, p in start.named_parameters() if name.endswith("lora_a"))


@pytest.mark.parametrize(
    ("entry", "mlp", "layers"),
    [
        (MLP, False, ["attn.qkv", "attn.proj"]),
        (MLP, True, ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]),
        (SWIGLU, True, ["attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"]),
    ],
)
def test_the_adapted_layers(entry: EncoderEntry, mlp: bool, layers: list[str]) -> None:
    model = adapted(entry, mlp=mlp)
    names = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    assert names == [f"blocks.{block}.{layer}" for block in range(2) for layer in layers]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_lora(name)}
    if not mlp:
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 3 * ((32 + 96) + (32 + 32))


@pytest.mark.parametrize("entry", [MLP, SWIGLU])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_merging_is_exact_in_every_layer(entry: EncoderEntry, dtype: torch.dtype, tolerance: float) -> None:
    model = adapted(entry).to(dtype)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            x = torch.randn(50, module.in_features, generator=torch.Generator().manual_seed(2)).to(dtype)
            plain = module.merged()
            assert type(plain) is nn.Linear
            torch.testing.assert_close(plain(x), module(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("entry", [MLP, SWIGLU])
def test_a_merged_network_computes_the_same(entry: EncoderEntry) -> None:
    model = adapted(entry)
    expected = model(images())
    assert (expected - vit(entry)(images())).abs().max() > 0.1  # the noise does something
    merged = copy.deepcopy(model)
    merge_lora(merged)
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
    torch.testing.assert_close(merged(images()), expected, rtol=1e-6, atol=2e-6)
    exact = merged.double()(images(torch.float64))
    torch.testing.assert_close(exact, model.double()(images(torch.float64)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("entry", [MLP, SWIGLU])
def test_merged_weights_have_the_official_names(entry: EncoderEntry) -> None:
    model = adapted(entry)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, official = merged_state(model), vit(entry)
    assert list(state) == list(official.state_dict())
    official.load_state_dict(state, strict=True)
    torch.testing.assert_close(official(images()), model(images()), rtol=1e-6, atol=2e-6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    merge_lora(model)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_state_of_a_network_without_lora_is_its_own() -> None:
    model = vit()
    state = merged_state(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_dropout_acts_in_training_only() -> None:
    model = adapted(dropout=0.5)
    assert torch.equal(model.eval()(images()), adapted()(images()))
    assert not torch.equal(model.train()(images()), model(images()))


def test_what_is_drawn_next_does_not_depend_on_lora() -> None:
    adapted(noise=False)
    after_lora = torch.rand(3)
    vit()
    assert torch.equal(after_lora, torch.rand(3))


def test_merging_keeps_what_is_frozen_frozen() -> None:
    model = adapted()
    merge_lora(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
