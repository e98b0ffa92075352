"""DINOv3: the same features as transformers in float64, official and Hugging Face key names, rotary positions."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError
from volseg.models.attention import reference_attention
from volseg.models.describe import describe_model
from volseg.models.encoders.dinov3 import DinoV3, RotaryPosition, rotate
from volseg.models.encoders.download import official_url
from volseg.models.encoders.weights import read_weights

NAMES = [name for name in CATALOGUE if name.startswith("dinov3_")]
SMALL = replace(CATALOGUE["dinov3_s16"], width=32, depth=2, heads=2)
GATED = replace(SMALL, swiglu=True)


@pytest.fixture(params=[SMALL, GATED], ids=["mlp", "swiglu"])
def entry(request: pytest.FixtureRequest) -> EncoderEntry:
    return request.param


def independent(entry: EncoderEntry, **settings: Any) -> nn.Module:
    """transformers' model of the same size, in float64, with random weights of a trained model's scale."""
    transformers = pytest.importorskip("transformers", reason="comes with volseg[bench]")
    config = transformers.DINOv3ViTConfig(
        hidden_size=entry.width,
        intermediate_size=4 * entry.width,
        num_hidden_layers=entry.depth,
        num_attention_heads=entry.heads,
        num_register_tokens=4,
        use_gated_mlp=entry.swiglu,
        hidden_act="silu" if entry.swiglu else "gelu",
        attn_implementation="eager",  # not the fused kernel that ours takes
        **settings,
    )
    model = transformers.DINOv3ViTModel(config).double().eval()
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.1, 1.0)
        else:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=entry.width**-0.5)
    return model


def ours_like(theirs: nn.Module, entry: EncoderEntry) -> DinoV3:
    ours = DinoV3(entry).double().eval()
    ours.load_state_dict(ours.official_state(theirs.state_dict()), strict=True)
    return ours


def angles_in_float64(theirs: nn.Module, ours: DinoV3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers, which rounds periods and coordinates to float32, compute its angles in float64."""
    from transformers.models.dinov3_vit import modeling_dinov3_vit as modeling

    rounded = modeling.get_patches_center_coordinates
    exact = lambda height, width, dtype, device: rounded(height, width, dtype=torch.float64, device=device)  # noqa: E731
    monkeypatch.setattr(modeling, "get_patches_center_coordinates", exact)
    theirs.rope_embeddings.inv_freq = 1 / ours.rope_embed.periods


@torch.no_grad()
def assert_same_features(theirs: nn.Module, ours: DinoV3, height: int, width: int, atol: float) -> None:
    """After every block."""
    images = torch.randn(2, 3, height, width, dtype=ours.cls_token.dtype)
    hidden = theirs(pixel_values=images, output_hidden_states=True).hidden_states
    taps = ours.taps(images, range(len(ours.blocks)))
    for tap, tokens in zip(taps, hidden[1:], strict=True):
        torch.testing.assert_close(tap, theirs.norm(tokens)[:, 5:], rtol=0, atol=atol)
    assert taps[-1].std() > 0.5
    assert (taps[-1] - taps[0]).abs().mean() > 0.03  # the blocks change the tokens


@pytest.mark.parametrize("name", NAMES)
def test_features_of_the_whole_family_equal_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    entry = replace(CATALOGUE[name], depth=2)
    theirs = independent(entry)
    ours = ours_like(theirs, entry)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    angles_in_float64(theirs, ours, monkeypatch)
    assert_same_features(theirs, ours, 96, 96, atol=1e-10)


@pytest.mark.parametrize("size", [(16, 16), (224, 224), (80, 272)])
def test_features_at_other_sizes(size: tuple[int, int], entry: EncoderEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    theirs = independent(entry)
    ours = ours_like(theirs, entry)
    assert_same_features(theirs.float(), ours.float(), *size, atol=1e-5)
    angles_in_float64(theirs.double(), ours.double(), monkeypatch)
    assert_same_features(theirs, ours, *size, atol=1e-10)


@pytest.mark.parametrize("settings", [{"layer_norm_eps": 1e-3}, {"rope_theta": 90.0}])
def test_another_epsilon_or_base_gives_other_features(settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    theirs = independent(SMALL, **settings)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_features(theirs, ours_like(theirs, SMALL), 96, 96, atol=1e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_files_written_by_transformers(tmp_path: Path, entry: EncoderEntry, suffix: str, prefix: str) -> None:
    """They name layers otherwise than the model in memory."""
    theirs = independent(entry)
    theirs.save_pretrained(tmp_path)
    state = read_weights(tmp_path / "model.safetensors")
    assert "layer.0.attention.q_proj.weight" in state
    path = tmp_path / "model.safetensors"
    if suffix == ".bin":
        path = tmp_path / "pytorch_model.bin"
        torch.save({prefix + key: value for key, value in state.items()}, path)
    ours = DinoV3(entry).double()
    ours.load_state_dict(ours.official_state(read_weights(path)), strict=True)
    for key, value in ours_like(theirs, entry).state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def official_state(entry: EncoderEntry) -> dict[str, torch.Tensor]:
    """A state dict with the key names and shapes of facebookresearch/dinov3, and keys with a bias that is masked."""
    torch.manual_seed(7)
    width, hidden = entry.width, 4 * entry.width
    block = {f"{kind}{number}.{part}": (width,) for number in "12" for kind, part in
             (("norm", "weight"), ("norm", "bias"), ("ls", "gamma"))}  # fmt: skip
    block |= {"attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,), "attn.qkv.bias_mask": (3 * width,)}
    layers = {"attn.proj": (width, width)}
    if entry.swiglu:
        layers |= {"mlp.w1": (hidden, width), "mlp.w2": (hidden, width), "mlp.w3": (width, hidden)}
    else:
        layers |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for name, shape in layers.items():
        block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, 4, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        **{f"blocks.{index}.{key}": shape for index in range(entry.depth) for key, shape in block.items()},
    }
    state = {key: torch.randn(shape, dtype=torch.float64) * 0.1 for key, shape in shapes.items()}
    for key in state:
        if key.endswith("bias_mask"):
            state[key] = torch.ones(3, width).index_fill(0, torch.tensor(1), 0).flatten().double()
    state["rope_embed.periods"] = 100 ** (torch.arange(0, 1, 4 * entry.heads / width, dtype=torch.float64))
    return state


def hugging_face_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename as transformers' ``convert_dinov3_vit_to_hf.py`` does, for its model in memory."""
    converted = {}
    for key, value in state.items():
        for official, theirs in (("storage_tokens", "embeddings.register_tokens"), ("attn.", "attention."),
                                 ("cls_token", "embeddings.cls_token"), ("mask_token", "embeddings.mask_token"),
                                 ("patch_embed.proj", "embeddings.patch_embeddings"), ("blocks.", "model.layer."),
                                 (".ls1.gamma", ".layer_scale1.lambda1"), (".ls2.gamma", ".layer_scale2.lambda1"),
                                 (".w1.", ".gate_proj."), (".w2.", ".up_proj."), (".w3.", ".down_proj."),
                                 (".fc1.", ".up_proj."), (".fc2.", ".down_proj."),
                                 ("attention.proj", "attention.o_proj")):  # fmt: skip
            key = key.replace(official, theirs)
        if "qkv" in key:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                converted[key.replace("qkv", f"{part}_proj")] = rows
        else:
            converted[key] = value
    converted["embeddings.mask_token"] = converted["embeddings.mask_token"][None]
    removed = ("bias_mask", "k_proj.bias", "periods")
    return {key: value for key, value in converted.items() if not key.endswith(removed)}


def test_official_files_give_the_features_of_their_conversion_to_transformers(
    entry: EncoderEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = official_state(entry)
    theirs = independent(entry)
    theirs.load_state_dict(hugging_face_state(state), strict=True)
    ours = DinoV3(entry).double().eval()
    ours.load_state_dict(ours.official_state(state), strict=True)
    angles_in_float64(theirs, ours, monkeypatch)
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(pixel_values=images).last_hidden_state[:, 5:]
        torch.testing.assert_close(ours.patch_tokens(images), expected, rtol=0, atol=1e-10)


def test_periods_are_those_of_the_file() -> None:
    """Official files store them; rounded to bfloat16 in pretraining, they are not those of the formula."""
    state = official_state(SMALL)
    state["rope_embed.periods"] = state["rope_embed.periods"].bfloat16()
    ours = DinoV3(SMALL)
    ours.load_state_dict(ours.official_state(state), strict=True)
    assert torch.equal(ours.rope_embed.periods, state["rope_embed.periods"].float())


def test_training_checkpoints_and_what_they_hold_beside_the_encoder(caplog: pytest.LogCaptureFixture) -> None:
    state = official_state(SMALL)
    expected = DinoV3(SMALL).official_state(state)
    stored = {f"backbone.{key}": value for key, value in state.items()}
    stored |= {"backbone.local_cls_norm.weight": torch.ones(32), "dino_head.mlp.0.weight": torch.ones(1)}
    with caplog.at_level(logging.INFO):
        found = DinoV3(SMALL).official_state(stored)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert "skipped: backbone.local_cls_norm, dino_head" in caplog.text


def test_a_bias_of_keys_without_a_mask_does_not_fit() -> None:
    state = {key: value for key, value in official_state(SMALL).items() if not key.endswith("bias_mask")}
    found = DinoV3(SMALL).official_state(state)
    assert found.keys() - DinoV3(SMALL).state_dict().keys() == {f"blocks.{index}.attn.key.bias" for index in (0, 1)}


def test_positions_by_hand() -> None:
    """A head of 8 channels has periods 1 and 10; the centres of 2 rows are at -1/2 and 1/2, that of 1 column at 0."""
    rotary = RotaryPosition(8)
    torch.testing.assert_close(rotary.periods, torch.tensor([1.0, 10.0]))
    cos, sin = rotary(2, 1)
    turn = torch.tensor([torch.pi, torch.pi / 10])  # half a turn, a twentieth of one
    angles = torch.stack([torch.cat([sign * turn, torch.zeros(2)]).tile(2) for sign in (-1, 1)])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin(), atol=1e-6, rtol=0)


def test_rotation_keeps_lengths_and_the_first_tokens() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 3, 5 + 6, 8)
    turned = rotate(tokens, *RotaryPosition(8)(2, 3))
    assert torch.equal(turned[:, :, :5], tokens[:, :, :5])
    torch.testing.assert_close(turned.norm(dim=-1), tokens.norm(dim=-1))
    assert (turned - tokens)[:, :, 5:].abs().amax(dim=-1).min() > 0.1
    assert rotate(tokens.bfloat16(), *RotaryPosition(8)(2, 3)).dtype == torch.bfloat16


def test_attention_depends_on_distance_alone() -> None:
    """The scores of two patches are those of two others at the same distance."""
    torch.manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 16).expand(1, 1, 4 * 5, 16) for _ in range(2))
    angles = RotaryPosition(16)(4, 5)
    scores = (rotate(query, *angles) @ rotate(key, *angles).transpose(-2, -1)).reshape(4, 5, 4, 5)
    torch.testing.assert_close(scores[0, 1, 2, 2], scores[1, 3, 3, 4])
    assert (scores[0, 1, 2, 2] - scores[0, 1, 2, 3]).abs() > 1e-3


def test_positions_in_training_are_those_of_prediction() -> None:
    model = DinoV3(SMALL)
    images = torch.randn(1, 3, 48, 64)
    assert torch.equal(model.train()(images), model.eval()(images))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_kernels_and_checkpointing_agree(checkpointed: bool) -> None:
    outputs = []
    for attend in (reference_attention, torch.nn.functional.scaled_dot_product_attention):
        torch.manual_seed(0)
        model = DinoV3(SMALL, attend=attend).double()
        model.checkpoint_layers = checkpointed and attend is reference_attention
        model(torch.randn(1, 3, 48, 64, dtype=torch.float64)).square().sum().backward()
        outputs.append(model.blocks[0].attn.query.weight.grad)
    torch.testing.assert_close(*outputs)


def test_its_cost_by_hand() -> None:
    plan = StubPlan()
    encoder, *_ = describe_model(ModelConfig(encoder="dinov3_s16plus", weights="random"), plan, batch_size=1)
    slices, tokens = plan.patch_size[0], 5 + (16 // plan.token_stride) ** 2
    weights = 4 * 384**2 + 3 * 384 * 1536
    block = tokens * weights + 2 * tokens**2 * 384
    embedding = (tokens - 5) * 2 * 16**2 * 384
    assert encoder.macs == slices * (12 * block + embedding)


@pytest.mark.parametrize("name", NAMES)
def test_gated_weights_are_an_error_that_says_where_they_are(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        official_url(name)
    assert f"huggingface.co/facebook/dinov3-vit{name.removeprefix('dinov3_')}-pretrain-lvd1689m" in str(error.value)
    assert "licence" in str(error.value)
    assert "model.weights=FILE" in str(error.value)
