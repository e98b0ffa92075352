"""Weights as others name them: files written by transformers, RAD-DINO's, DINOv2's training checkpoints."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.made.encoders import small_entry
from volseg.config.encoders import EncoderEntry
from volseg.errors import ModelFileError
from volseg.models.encoders.dinov2 import DinoV2, official_names
from volseg.models.encoders.slices import SliceEncoder
from volseg.models.encoders.weights import load_encoder, read_weights

SIDE = 5 * 14


def small(*, registers: int = 0, swiglu: bool = False) -> EncoderEntry:
    return small_entry(width=32, depth=2, heads=2, grid=5, registers=registers, swiglu=swiglu)


def official_state(entry: EncoderEntry) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {key: torch.randn_like(value) for key, value in DinoV2(entry).state_dict().items()}


def assert_equal(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("prefixed", [False, True], ids=["bare", "prefixed"])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_files_written_by_transformers(
    tmp_path: Path, prefixed: bool, registers: int, swiglu: bool, suffix: str
) -> None:
    """The prefix is what a classifier's file has; RAD-DINO's ``model.safetensors`` is a bare Dinov2 file."""
    transformers = pytest.importorskip("transformers", reason="comes with volseg[bench]")
    entry = small(registers=registers, swiglu=swiglu)
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    settings = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        use_swiglu_ffn=swiglu,
        **settings,
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, kind + ("ForImageClassification" if prefixed else "Model"))(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    saved = load_file(path)
    assert "embeddings.cls_token" in {key.removeprefix(f"{theirs.base_model_prefix}.") for key in saved}
    if suffix == ".bin":
        path = tmp_path / "pytorch_model.bin"
        torch.save(saved, path)
    ours = DinoV2(entry).eval()
    ours.load_state_dict(official_names(read_weights(path)), strict=True)
    images = torch.randn(1, 3, SIDE, SIDE)
    base = getattr(theirs, theirs.base_model_prefix) if prefixed else theirs
    with torch.no_grad():
        expected = base(pixel_values=images).last_hidden_state[:, 1 + registers :]
        torch.testing.assert_close(ours.patch_tokens(images), expected, rtol=0, atol=1e-5)
    assert torch.equal(ours.mask_token, base.embeddings.mask_token)


def test_query_key_and_value_are_joined_in_this_order() -> None:
    state = {"embeddings.patch_embeddings.projection.weight": torch.zeros(1)}
    for value, part in enumerate(("query", "key", "value")):
        state[f"encoder.layer.3.attention.attention.{part}.bias"] = torch.full((2,), float(value))
    assert official_names(state)["blocks.3.attn.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    encoder = SliceEncoder(DinoV2(small()), 4, 1)
    state = {"embeddings.patch_embeddings.projection.weight": torch.zeros(32, 3, 14, 14)}
    state["encoder.layer.0.attention.attention.query.bias"] = torch.zeros(32)
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    with pytest.raises(ModelFileError) as error:
        load_encoder(encoder, path, 3)
    assert "missing blocks.0.attn.qkv.bias" in str(error.value)
    assert "unexpected blocks.0.attention.attention.query.bias" in str(error.value)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "teacher.backbone.", "model.encoder.vit."])
def test_official_names_behind_a_prefix(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """RAD-DINO's ``backbone_compatible.safetensors`` has them bare, its training checkpoints behind ``teacher.``."""
    expected = official_state(small())
    state = {prefix + key: value for key, value in expected.items()}
    if prefix:
        state["dino_head.mlp.0.weight"] = torch.zeros(2, 2)
    with caplog.at_level(logging.INFO):
        assert_equal(official_names(state), expected)
    assert ("skipped: dino_head" in caplog.text) == bool(prefix)


def test_the_teacher_is_taken_not_the_student() -> None:
    expected = official_state(small())
    student = {f"student.backbone.{key}": torch.zeros_like(value) for key, value in expected.items()}
    teacher = {f"teacher.backbone.{key}": value for key, value in expected.items()}
    assert_equal(official_names(student | teacher), expected)


@pytest.mark.parametrize("name", ["teacher", "model", "state_dict"])
def test_training_checkpoints_with_blocks_in_chunks(tmp_path: Path, name: str) -> None:
    """Chunk and block number both stand in the key; the block number counts through."""
    expected = official_state(small())
    chunked = {re.sub(r"^blocks\.(\d+)", r"blocks.\1.\1", key): value for key, value in expected.items()}
    assert "blocks.1.1.attn.qkv.weight" in chunked
    path = tmp_path / "teacher_checkpoint.pth"
    torch.save({name: {f"backbone.{key}": value for key, value in chunked.items()}, "iteration": 3}, path)
    assert_equal(official_names(read_weights(path)), expected)
