"""The plain ViT: the same features as transformers in float64; files of timm, MAE, MSN and Hugging Face."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE, EncoderEntry
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError, ModelFileError
from volseg.models.attention import reference_attention
from volseg.models.build import build_model
from volseg.models.encoders.download import official_url
from volseg.models.encoders.vit import Vit
from volseg.models.encoders.weights import read_weights

transformers = pytest.importorskip("transformers", reason="the independent ViT comes with volseg[bench]")

NAMES = [name for name in CATALOGUE if name.startswith("vit_")]
SMALL = replace(CATALOGUE["vit_b16"], width=32, depth=2, heads=2, grid=5, weights=None)
KINDS = {
    "vit": (transformers.ViTModel, transformers.ViTConfig, {}),
    "mae": (transformers.ViTMAEModel, transformers.ViTMAEConfig, {"mask_ratio": 0.0}),
    "msn": (transformers.ViTMSNModel, transformers.ViTMSNConfig, {}),
}


def independent(entry: EncoderEntry, kind: str = "vit", model: type[nn.Module] | None = None) -> nn.Module:
    """transformers' model of the same size, in float64, with random weights of a trained model's scale."""
    base, config, settings = KINDS[kind]
    theirs = (model or base)(
        config(
            hidden_size=entry.width,
            intermediate_size=4 * entry.width,
            num_hidden_layers=entry.depth,
            num_attention_heads=entry.heads,
            image_size=16 * entry.grid,
            layer_norm_eps=1e-6,
            attn_implementation="sdpa",  # not the kernel that ours takes here
            **settings,
        )
    )
    theirs = theirs.double().eval()
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=entry.width**-0.5)
    return theirs


def ours_like(theirs: nn.Module, entry: EncoderEntry) -> Vit:
    ours = Vit(entry, attend=reference_attention).double().eval()
    ours.load_state_dict(ours.official_state(theirs.state_dict()), strict=True)
    return ours


@torch.no_grad()
def assert_same_features(theirs: nn.Module, ours: Vit, height: int, width: int, atol: float = 1e-10) -> None:
    """After every block; positions are resized as transformers does."""
    images = torch.randn(2, 3, height, width, dtype=ours.cls_token.dtype)
    given = {"pixel_values": images, "interpolate_pos_encoding": True, "output_hidden_states": True}
    if isinstance(theirs, transformers.ViTMAEModel):  # it orders the patches by this noise
        given["noise"] = torch.arange(height * width / 256).expand(2, -1)
    hidden = theirs(**given).hidden_states
    taps = ours.taps(images, range(len(ours.blocks)))
    for tap, tokens in zip(taps, hidden[1:], strict=True):
        torch.testing.assert_close(tap, theirs.layernorm(tokens)[:, 1:], rtol=0, atol=atol)
    assert taps[-1].std() > 0.5
    assert (taps[-1] - taps[0]).abs().mean() > 0.03  # the blocks change the tokens


@pytest.mark.parametrize("name", NAMES)
def test_features_of_the_whole_family_equal_transformers(name: str) -> None:
    torch.manual_seed(0)
    entry = replace(CATALOGUE[name], depth=2, grid=6)
    theirs = independent(entry)
    assert_same_features(theirs, ours_like(theirs, entry), 96, 96)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(80, 80), (16, 16), (224, 224), (48, 176)])
def test_features_of_every_kind_at_other_sizes(kind: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = independent(SMALL, kind)
    ours = ours_like(theirs, SMALL)
    assert_same_features(theirs, ours, *size)
    assert_same_features(theirs.float(), ours.float(), *size, atol=1e-5)


HEADS = {"vit": transformers.ViTForImageClassification, "mae": transformers.ViTMAEForPreTraining}


@pytest.mark.parametrize(
    ("kind", "head"), [("vit", False), ("vit", True), ("mae", False), ("mae", True), ("msn", False)]
)
def test_files_written_by_transformers(tmp_path: Path, kind: str, head: bool, caplog: pytest.LogCaptureFixture) -> None:
    """They name tensors otherwise than the model in memory; heads are skipped, of MAE the decoder."""
    theirs = independent(SMALL, kind, HEADS[kind] if head else None)
    theirs.save_pretrained(tmp_path)
    state = read_weights(tmp_path / "model.safetensors")
    assert ("vit." * head) + "embeddings.cls_token" in state
    ours = Vit(SMALL).double()
    with caplog.at_level(logging.INFO):
        ours.load_state_dict(ours.official_state(state), strict=True)
    expected = ours_like(theirs.vit if head else theirs, SMALL).state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key]), key
    skipped = ("decoder" if kind == "mae" else "classifier") if head else ("pooler" if kind == "vit" else "")
    assert f"skipped: {skipped}" in caplog.text if skipped else "skipped" not in caplog.text


def timm_state(entry: EncoderEntry) -> dict[str, torch.Tensor]:
    """A state dict with the key names and shapes of timm's VisionTransformer, without a head."""
    torch.manual_seed(7)
    width = entry.width
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + entry.grid**2, width)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    for index in range(entry.depth):
        for name, shape in layers.items():
            shapes |= {f"blocks.{index}.{name}.weight": shape, f"blocks.{index}.{name}.bias": shape[:1]}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


FILES = {
    "timm's AugReg": ("", {"head.weight": 2, "head.bias": 2}, None, "head"),
    "an old timm": ("", {"pre_logits.fc.weight": 2, "head.weight": 2}, None, "head, pre_logits"),
    "MAE": ("", {}, "model", ""),
    "MAE with its decoder": (
        "",
        {"mask_token": 2, "decoder_pos_embed": 2, "decoder_blocks.0.attn.qkv.weight": 2, "decoder_pred.bias": 2},
        "model",
        "decoder_blocks, decoder_pos_embed, decoder_pred, mask_token",
    ),
    "MSN": ("module.", {"fc.fc1.weight": 2, "fc.bn1.running_mean": 2}, "target_encoder", "module.fc"),
    "a tower of open_clip": ("visual.trunk.", {}, "state_dict", ""),
}


@pytest.mark.parametrize("file", FILES)
def test_files_with_the_names_of_timm(tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    prefix, more, key, skipped = FILES[file]
    expected = timm_state(SMALL)
    state = {prefix + name: value for name, value in expected.items()}
    state |= {prefix + name: torch.zeros(size) for name, size in more.items()}
    path = tmp_path / "weights.pth"
    torch.save({key: state, "epoch": 3} if key else state, path)
    ours = Vit(SMALL)
    with caplog.at_level(logging.INFO):
        ours.load_state_dict(ours.official_state(read_weights(path)), strict=True)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert f"skipped: {skipped}\n" in caplog.text if skipped else "skipped" not in caplog.text


def test_weights_of_another_kind_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT that was fine-tuned on the mean of its tokens has no final norm; its other norm does not take its place."""
    monkeypatch.setitem(CATALOGUE, "vit_b16", SMALL)
    state = {key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: value
             for key, value in timm_state(SMALL).items()}  # fmt: skip
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(ModelFileError) as error:
        build_model(ModelConfig(encoder="vit_b16", weights=str(path)), StubPlan())
    assert "missing norm.weight" in str(error.value)
    assert "unexpected fc_norm.weight" in str(error.value)


def test_rgb_weights_work_on_any_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "vit_b16", SMALL)
    path = tmp_path / "weights.pth"
    torch.save(timm_state(SMALL), path)
    model = build_model(ModelConfig(encoder="vit_b16", weights=str(path), features=4), StubPlan())
    weight = model.encoder.vit.patch_embed.proj.weight
    expected = timm_state(SMALL)["patch_embed.proj.weight"].sum(1) / 3  # a slice and its two neighbours
    torch.testing.assert_close(weight[:, 0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_says_which_weights_fit(name: str) -> None:
    with pytest.raises(ConfigError, match=r"augreg_in21k[\s\S]*model.weights=FILE"):
        official_url(name)
