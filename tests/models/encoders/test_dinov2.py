"""The DINOv2 family: sizes, keys, position embedding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.made.encoders import small_entry
from volseg.config.encoders import CATALOGUE
from volseg.errors import ConfigError
from volseg.models.encoders.dinov2 import DinoV2, build_dinov2
from volseg.models.encoders.layers import DropPath
from volseg.models.encoders.slices import tap_indices
from volseg.models.encoders.transformer import resize_position

SMALL = small_entry(width=24, depth=2, heads=2, grid=5)
PUBLISHED = {
    "dinov2_s14": 22_056_576,
    "dinov2_b14": 86_580_480,
    "dinov2_l14": 304_368_640,
    "dinov2_g14": 1_136_480_768,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        plain, registers = build_dinov2(name), build_dinov2(name + "_reg")
    assert sum(p.numel() for p in plain.parameters()) == count
    assert sum(p.numel() for p in registers.parameters()) == count + 4 * CATALOGUE[name].width


def test_official_keys_and_shapes() -> None:
    with torch.device("meta"):
        state = build_dinov2("dinov2_g14_reg").state_dict()
    block = {
        "norm1.weight": (1536,),
        "norm1.bias": (1536,),
        "attn.qkv.weight": (4608, 1536),
        "attn.qkv.bias": (4608,),
        "attn.proj.weight": (1536, 1536),
        "attn.proj.bias": (1536,),
        "ls1.gamma": (1536,),
        "norm2.weight": (1536,),
        "norm2.bias": (1536,),
        "mlp.w12.weight": (8192, 1536),
        "mlp.w12.bias": (8192,),
        "mlp.w3.weight": (1536, 4096),
        "mlp.w3.bias": (1536,),
        "ls2.gamma": (1536,),
    }
    expected = {f"blocks.{i}.{key}": shape for i in range(40) for key, shape in block.items()} | {
        "cls_token": (1, 1, 1536),
        "pos_embed": (1, 1370, 1536),
        "register_tokens": (1, 4, 1536),
        "mask_token": (1, 1536),
        "patch_embed.proj.weight": (1536, 3, 14, 14),
        "patch_embed.proj.bias": (1536,),
        "norm.weight": (1536,),
        "norm.bias": (1536,),
    }
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_mask_token_is_not_trained() -> None:
    assert [n for n, p in DinoV2(SMALL).named_parameters() if not p.requires_grad] == ["mask_token"]


def test_names_as_in_the_official_files() -> None:
    assert build_dinov2("tiny").entry == CATALOGUE["tiny"]
    with torch.device("meta"):
        assert build_dinov2("dinov2_vits14_reg4").entry == CATALOGUE["dinov2_s14_reg"]
    with pytest.raises(ConfigError, match="dinov2_x14"):
        build_dinov2("dinov2_x14")


def test_sides_must_be_whole_patches() -> None:
    with pytest.raises(ValueError, match="multiples of 14"):
        DinoV2(SMALL).patch_tokens(torch.zeros(1, 3, 28, 30))


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (40, (9, 19, 29, 39)), (4, (0, 1, 2, 3)), (2, (0, 1))],
)
def test_taps_are_evenly_spaced_and_end_with_the_last_block(depth: int, expected: tuple[int, ...]) -> None:
    assert tap_indices(depth) == expected


def test_taps_are_the_normalised_patch_tokens_after_each_block() -> None:
    torch.manual_seed(0)
    model = DinoV2(small_entry(width=24, depth=3, heads=2, registers=2, grid=5)).eval()
    images = torch.randn(2, 3, 28, 42)
    tokens, expected = model.embed(model.patch_embed(images), 2, 3), []
    for block in model.blocks:
        tokens = block(tokens)
        expected.append(model.norm(tokens)[:, 3:])
    first, last = model.taps(images, (0, 2))
    torch.testing.assert_close(first, expected[0])
    torch.testing.assert_close(last, expected[2])
    assert torch.equal(model.patch_tokens(images), last)


def test_masked_patches_are_replaced_before_positions_are_added() -> None:
    torch.manual_seed(0)
    model = DinoV2(small_entry(width=24, depth=2, heads=2, registers=2, grid=5)).eval()
    assert model.mask_token is not None
    torch.nn.init.normal_(model.mask_token)
    images, masked = torch.randn(1, 3, 28, 42), torch.tensor([[True, False, False, False, True, False]])
    cls, patches = model.class_and_patch_tokens(images)
    assert cls.shape == (1, 24)
    assert torch.equal(patches, model.patch_tokens(images))
    hidden = images.clone()
    hidden[:, :, :14, :14] = hidden[:, :, 14:, 14:28] = 7.0  # patches 0 and 4
    assert not torch.equal(model.patch_tokens(images), model.patch_tokens(hidden))
    first, second = (model.class_and_patch_tokens(each, masked) for each in (images, hidden))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], patches)


def cubic(distance: float, a: float) -> float:
    x = abs(distance)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def official_matrix(native: int, size: int, *, registers: bool) -> np.ndarray:
    """The official rule for one axis, written out: rows of weights over the native positions.

    Base models call bicubic interpolation with scale (size + 0.1) / native: a = -0.75, borders clamped. Register models
    ask for the size, antialiased: a = -0.5, the kernel widened when shrinking, cut off at the border and renormalised.
    """
    rows = np.zeros((size, native))
    for out in range(size):
        if registers:
            step = native / size
            width = max(step, 1.0)
            centre = step * (out + 0.5)
            for source in range(native):
                if math.floor(centre - 2 * width + 0.5) <= source < math.floor(centre + 2 * width + 0.5):
                    rows[out, source] = cubic((source + 0.5 - centre) / width, a=-0.5)
            rows[out] /= rows[out].sum()
        else:
            position = (out + 0.5) * native / (size + 0.1) - 0.5
            first = math.floor(position)
            for source in range(first - 1, first + 3):
                rows[out, min(max(source, 0), native - 1)] += cubic(position - source, a=-0.75)
    return rows


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("pixels", [(224, 224), (448, 448), (518, 448), (252, 686), (14, 28)])
def test_position_embedding_follows_the_official_rule(pixels: tuple[int, int], registers: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    native = torch.randn(1, 1 + 37 * 37, 2, generator=generator)
    height, width = pixels[0] // 14, pixels[1] // 14
    resized = resize_position(native, height, width, antialias=registers, offset=0.0 if registers else 0.1)
    grid = native[0, 1:].reshape(37, 37, 2).double().numpy()
    down, across = (official_matrix(37, size, registers=registers) for size in (height, width))
    expected = np.einsum("ab,bcd,ec->aed", down, grid, across).reshape(-1, 2)
    assert torch.equal(resized[:, 0], native[:, 0])
    np.testing.assert_allclose(resized[0, 1:].numpy(), expected, atol=2e-5)


def test_native_grid_keeps_the_position_embedding() -> None:
    model = DinoV2(SMALL)
    assert model.position(5, 5) is model.pos_embed


def test_position_cache_follows_the_parameter() -> None:
    model = DinoV2(SMALL).requires_grad_(False)
    first = model.position(3, 4)
    assert model.position(3, 4) is first
    model.pos_embed.mul_(2)
    torch.testing.assert_close(model.position(3, 4), 2 * first)
    assert model.double().position(3, 4).dtype == torch.float64
    assert model.position(4, 3).shape == (1, 13, 24)


def test_a_model_that_was_built_for_inference_alone() -> None:
    with torch.inference_mode():
        model = DinoV2(SMALL)
        assert model.position(3, 4).shape == (1, 13, 24)


def test_drop_path_keeps_the_mean_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.5), torch.ones(4000, 1, 1)
    dropped = drop(x)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    assert abs(dropped.mean().item() - 1) < 0.08
    assert drop.eval()(x) is x
