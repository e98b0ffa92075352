"""The same features as an independent implementation (transformers) on shared random weights, in float64.

Every width, head count and feed-forward layer of the family at depth 2; full depth is ``benchmarks/parity.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.made.encoders import small_entry
from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.models.encoders.dinov2 import DinoV2, official_names

transformers = pytest.importorskip("transformers", reason="the independent DINOv2 comes with volseg[bench]")

NAMES = [name for name in CATALOGUE if name.startswith("dinov2_")]


def independent(entry: EncoderEntry) -> nn.Module:
    """transformers' model of the same size, in float64, with random weights of a trained model's scale."""
    kind = "Dinov2WithRegisters" if entry.registers else "Dinov2"
    settings = {
        "hidden_size": entry.width,
        "num_hidden_layers": entry.depth,
        "num_attention_heads": entry.heads,
        "use_swiglu_ffn": entry.swiglu,
        "image_size": entry.grid * 14,
        "patch_size": 14,
        "attn_implementation": "eager",  # not the fused kernel that ours takes
    }
    if entry.registers:
        settings["num_register_tokens"] = entry.registers
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))
    assert not list(model.buffers())
    model = model.double().to_empty(device="cpu").eval()
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.1, 1.0)
        else:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.05)
    return model


def ours_like(theirs: nn.Module, entry: EncoderEntry) -> DinoV2:
    with torch.device("meta"):
        ours = DinoV2(entry)
    ours.load_state_dict(official_names(theirs.state_dict()), strict=True, assign=True)
    return ours.eval()


@torch.no_grad()
def assert_same_features(theirs: nn.Module, ours: DinoV2, height: int, width: int) -> None:
    """After the first and after the last block."""
    images = torch.randn(1, 3, height, width, dtype=torch.float64)
    expected = theirs(pixel_values=images, output_hidden_states=True)
    skip, deepest = 1 + ours.entry.registers, len(ours.blocks) - 1
    first, last = ours.taps(images, (0, deepest))
    torch.testing.assert_close(last, expected.last_hidden_state[:, skip:], rtol=0, atol=1e-10)
    torch.testing.assert_close(first, theirs.layernorm(expected.hidden_states[1])[:, skip:], rtol=0, atol=1e-10)
    assert last.std() > 0.5
    assert (last - first).abs().mean() > 0.03  # the blocks change the tokens


@pytest.mark.parametrize("name", NAMES)
def test_features_of_the_whole_family_equal_transformers(name: str) -> None:
    torch.manual_seed(0)
    entry = replace(CATALOGUE[name], depth=2)
    if entry.width > 400:  # fewer positions, or most of the time goes into attention
        entry = replace(entry, grid=9)
    theirs = independent(entry)
    assert_same_features(theirs, ours_like(theirs, entry), 14 * entry.grid, 14 * entry.grid)


def official_position(pos_embed: torch.Tensor, *, registers: bool) -> Callable[..., torch.Tensor]:
    """The official position embedding, written out after facebookresearch/dinov2 with each family's hub settings."""

    def position(_embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        rows, columns = height // 14, width // 14
        native = pos_embed[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        if registers:  # interpolate_antialias=True, interpolate_offset=0.0
            settings: dict[str, object] = {"size": (rows, columns), "antialias": True}
        else:  # interpolate_antialias=False, interpolate_offset=0.1
            settings = {"scale_factor": ((rows + 0.1) / 37, (columns + 0.1) / 37), "antialias": False}
        resized = nn.functional.interpolate(native, mode="bicubic", **settings)
        assert resized.shape[-2:] == (rows, columns)
        return torch.cat([pos_embed[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)], dim=1)

    return position


@pytest.mark.parametrize("size", [(224, 224), (448, 448), (448, 518), (252, 686)])
@pytest.mark.parametrize("registers", [0, 4])
def test_features_at_other_sizes_follow_the_official_position_rule(size: tuple[int, int], registers: int) -> None:
    torch.manual_seed(0)
    entry = small_entry(width=64, depth=2, heads=4, registers=registers)
    theirs = independent(entry)
    nn.init.normal_(theirs.embeddings.position_embeddings)  # strong enough for the rules to differ
    ours = ours_like(theirs, entry)
    theirs.embeddings.interpolate_pos_encoding = official_position(ours.pos_embed, registers=registers > 0)
    assert_same_features(theirs, ours, *size)
    theirs.embeddings.interpolate_pos_encoding = official_position(ours.pos_embed, registers=registers == 0)
    with pytest.raises(AssertionError, match="not close"):  # the other family's rule gives other numbers
        assert_same_features(theirs, ours, *size)


def test_joined_and_renamed_tensors_keep_every_value() -> None:
    """The mask token, too, which no feature depends on."""
    torch.manual_seed(0)
    entry = small_entry(width=32, depth=2, heads=2, swiglu=True, registers=4, grid=3)
    theirs = independent(entry)
    converted = official_names(theirs.state_dict())
    assert torch.equal(converted["mask_token"], theirs.embeddings.mask_token)
    assert sum(value.numel() for value in converted.values()) == sum(p.numel() for p in theirs.parameters())
