"""Slices in, tokens out: alignment, neighbours, flips, chunks."""

from __future__ import annotations

import pytest
import torch

from tests.made.encoders import small_entry
from volseg.models.contracts import ImageEncoder
from volseg.models.encoders.dinov2 import DinoV2
from volseg.models.encoders.slices import SliceEncoder, gather_slices, resize_slices, slice_channels

ENTRY = small_entry(width=24, depth=2, heads=2, grid=5)


def encoder(adjacent: int = 3, stride: int = 8, channels: int = 1) -> SliceEncoder:
    torch.manual_seed(0)
    return SliceEncoder(DinoV2(ENTRY, slice_channels(channels, adjacent)), stride, adjacent).eval()


def test_neighbours_are_the_slices_before_and_after() -> None:
    x = torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand(2, 1, 5, 1, 1)
    gathered = gather_slices(x, 3)
    assert gathered.shape == (6, 2, 1, 1)
    assert gathered[:3, :, 0, 0].tolist() == [[1, 2], [2, 4], [3, 6]]
    assert torch.equal(gather_slices(x, 1)[:, 0, 0, 0], torch.tensor([0, 1, 2, 3, 4] * 2).float())


def test_summed_neighbours_equal_tied_weights() -> None:
    torch.manual_seed(0)
    model = encoder()
    x = torch.randn(1, 1, 3, 14, 14)
    weight = model.vit.patch_embed.proj.weight
    tied = torch.cat([weight[:, 1:], weight[:, :1], weight[:, 1:]], dim=1)  # previous, centre, next
    expected = torch.nn.functional.conv2d(x[:, 0], tied, model.vit.patch_embed.proj.bias)
    torch.testing.assert_close(model.vit.patch_embed.proj(gather_slices(x, 3)), expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_flip_along_depth_only_reverses_the_tokens(channels: int) -> None:
    model = encoder(channels=channels)
    x = torch.randn(2, channels, 7, 16, 24)
    for tap, flipped in zip(model(x), model(x.flip(2)), strict=True):
        torch.testing.assert_close(flipped, tap.flip(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_a_patch_covers_exactly_its_voxels(stride: int) -> None:
    ramp = torch.arange(5.0 * stride).expand(1, 1, 5 * stride, -1)
    means = torch.nn.functional.avg_pool2d(resize_slices(ramp, stride, 14), 14)[0, 0, 0]
    centres = torch.arange(5) * stride + (stride - 1) / 2
    torch.testing.assert_close(means[1:-1], centres[1:-1], rtol=0, atol=1e-3)  # borders repeat the last voxel


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_token_rows_and_columns_sit_on_the_voxel_grid(stride: int) -> None:
    torch.manual_seed(0)
    model = encoder(stride=stride)
    x = torch.zeros(1, 1, 3, 3 * stride, 4 * stride)
    changed = x.clone()
    changed[0, 0, 1, stride + 1 : 2 * stride - 1, 2 * stride + 1 : 3 * stride - 1] = 1
    with torch.no_grad():
        images = [resize_slices(gather_slices(volume, 3), stride, 14) for volume in (x, changed)]
        before, after = (model.vit.patch_embed.proj(image)[0] for image in images)
    touched = (after - before).abs().amax(dim=0) > 1e-6
    assert touched.nonzero().tolist() == [[1, 2]]
    assert model(x)[0].shape == (1, 24, 1, 3, 4)


def test_chunks_do_not_change_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = encoder().double(), torch.randn(2, 1, 9, 16, 16, dtype=torch.float64)
    calls: list[int] = []
    model.vit.patch_embed.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    with torch.no_grad():
        whole = model(x)
        monkeypatch.setattr(ImageEncoder, "chunk_pixels", 4 * 28 * 28)
        chunked = model(x)
    assert calls == [14, 4, 4, 4, 2]
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
