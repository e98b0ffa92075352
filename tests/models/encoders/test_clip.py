"""CLIP's image tower: the same features as transformers in float64; files of open_clip, Hugging Face and timm."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.errors import ConfigError
from volseg.models.attention import reference_attention
from volseg.models.encoders.clip import Clip, quick_gelu
from volseg.models.encoders.download import official_url
from volseg.models.encoders.weights import read_weights

transformers = pytest.importorskip("transformers", reason="the independent CLIP comes with volseg[bench]")

NAMES = [name for name in CATALOGUE if name.startswith("clip_")]
SMALL = replace(CATALOGUE["clip_b16"], width=32, depth=2, heads=2, grid=5)


def config(entry: EncoderEntry) -> object:
    return transformers.CLIPVisionConfig(
        hidden_size=entry.width,
        intermediate_size=4 * entry.width,
        num_hidden_layers=entry.depth,
        num_attention_heads=entry.heads,
        image_size=entry.patch * entry.grid,
        patch_size=entry.patch,
        hidden_act="quick_gelu" if entry.quick_gelu else "gelu",
        projection_dim=8,
        attn_implementation="sdpa",  # not the kernel that ours takes here
    )


def drawn(theirs: nn.Module) -> nn.Module:
    """Return the model in float64 with random weights of a trained model's scale."""
    theirs = theirs.double().eval()
    for name, parameter in theirs.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=scale)
    return theirs


def ours_like(theirs: nn.Module, entry: EncoderEntry) -> Clip:
    ours = Clip(entry, attend=reference_attention).double().eval()
    ours.load_state_dict(ours.official_state(theirs.state_dict()), strict=True)
    return ours


@torch.no_grad()
def assert_same_features(theirs: nn.Module, ours: Clip, height: int, width: int, atol: float = 1e-10) -> None:
    """After every block, through the final norm; positions are resized as transformers does."""
    images = torch.randn(2, 3, height, width, dtype=ours.cls_token.dtype)
    hidden = theirs(pixel_values=images, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    taps = ours.taps(images, range(len(ours.blocks)))
    for tap, tokens in zip(taps, hidden[1:], strict=True):
        torch.testing.assert_close(tap, theirs.post_layernorm(tokens)[:, 1:], rtol=0, atol=atol)
    assert taps[-1].std() > 0.5
    assert (taps[-1] - taps[0]).abs().mean() > 0.03  # the blocks change the tokens


@pytest.mark.parametrize("name", NAMES)
def test_features_of_the_whole_family_equal_transformers(name: str) -> None:
    torch.manual_seed(0)
    entry = replace(CATALOGUE[name], depth=2, grid=6)
    theirs = drawn(transformers.CLIPVisionModel(config(entry)))
    side = entry.patch * 6
    assert_same_features(theirs, ours_like(theirs, entry), side, side)
    other = replace(entry, quick_gelu=not entry.quick_gelu)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_features(theirs, ours_like(theirs, other), side, side, atol=1e-4)


@pytest.mark.parametrize("size", [(80, 80), (16, 16), (224, 224), (48, 176)])
def test_features_at_other_sizes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = drawn(transformers.CLIPVisionModel(config(SMALL)))
    ours = ours_like(theirs, SMALL)
    assert_same_features(theirs, ours, *size)
    assert_same_features(theirs.float(), ours.float(), *size, atol=1e-5)


def test_quick_gelu_by_hand() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(quick_gelu(x), torch.tensor([-0.154200, 0.0, 1.935659]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("whole", [False, True], ids=["image tower", "images and texts"])
def test_files_written_by_transformers(tmp_path: Path, whole: bool, caplog: pytest.LogCaptureFixture) -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    if whole:
        both = transformers.CLIPConfig(vision_config=config(SMALL).to_dict(), text_config=text, projection_dim=8)
        theirs = transformers.CLIPModel(both)
    else:
        theirs = transformers.CLIPVisionModelWithProjection(config(SMALL))
    drawn(theirs).save_pretrained(tmp_path)
    state = read_weights(tmp_path / "model.safetensors")
    state["vision_model.embeddings.position_ids"] = torch.arange(26)[None]  # of older versions
    ours = Clip(SMALL).double().eval()
    with caplog.at_level(logging.INFO):
        ours.load_state_dict(ours.official_state(state), strict=True)
    assert "visual_projection" in caplog.text
    assert ("text_model" in caplog.text) == whole
    images = torch.randn(1, 3, 80, 80, dtype=torch.float64)
    with torch.no_grad():
        hidden = theirs.vision_model(pixel_values=images).last_hidden_state
        expected = theirs.vision_model.post_layernorm(hidden)[:, 1:]
        torch.testing.assert_close(ours.patch_tokens(images), expected, rtol=0, atol=1e-10)


def open_clip_state(entry: EncoderEntry) -> dict[str, torch.Tensor]:
    """The image tower's state dict with the key names and shapes of open_clip."""
    torch.manual_seed(7)
    width = entry.width
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (1 + entry.grid**2, width),
        "proj": (width, 8),
        "conv1.weight": (width, 3, 16, 16),
    }
    norms = ["ln_pre", "ln_post"]
    for index in range(entry.depth):
        block = f"transformer.resblocks.{index}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        layers = {"attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        for name, shape in layers.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    shapes |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def test_files_of_open_clip(caplog: pytest.LogCaptureFixture) -> None:
    """The text tower has the same names without the prefix."""
    state = {f"visual.{key}": value for key, value in open_clip_state(SMALL).items()}
    text = {"positional_embedding": torch.zeros(77, 8), "transformer.resblocks.0.ln_1.weight": torch.zeros(8)}
    ours = Clip(SMALL)
    with caplog.at_level(logging.INFO):
        ours.load_state_dict(ours.official_state(state | text), strict=True)
    assert "skipped: positional_embedding, transformer, visual.proj\n" in caplog.text
    own = ours.state_dict()
    for theirs, name in (("transformer.resblocks.1.attn.in_proj_weight", "blocks.1.attn.qkv.weight"),
                         ("transformer.resblocks.0.mlp.c_proj.bias", "blocks.0.mlp.fc2.bias"),
                         ("transformer.resblocks.0.ln_2.weight", "blocks.0.norm2.weight"),
                         ("ln_pre.bias", "norm_pre.bias"), ("ln_post.bias", "norm.bias"),
                         ("conv1.weight", "patch_embed.proj.weight")):  # fmt: skip
        assert torch.equal(own[name], state[f"visual.{theirs}"]), name
    assert torch.equal(own["cls_token"][0, 0], state["visual.class_embedding"])
    assert torch.equal(own["pos_embed"][0], state["visual.positional_embedding"])


def test_files_of_timm_in_half_precision() -> None:
    """timm names the tensors as volseg does; OpenAI's weights are stored in float16."""
    state = {key: torch.randn_like(value).half() for key, value in Clip(SMALL).state_dict().items()}
    ours = Clip(SMALL)
    ours.load_state_dict(ours.official_state(state | {"head.weight": torch.zeros(1)}), strict=True)
    assert all(torch.equal(value, state[key].float()) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_error_says_which_weights_fit(name: str) -> None:
    with pytest.raises(ConfigError, match="laion/CLIP" if name.endswith("_gelu") else "openai/clip"):
        official_url(name)
