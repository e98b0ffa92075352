"""Sliding-window inference against an oracle that runs the whole network on every window."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from volseg.geometry.ops import pad_to_size
from volseg.inference.sliding.memory import Schedule
from volseg.inference.sliding.stream import predict_logits
from volseg.inference.sliding.windows import gaussian_importance, window_starts
from volseg.planning.plan import Plan

Build = Callable[..., nn.Module]
MakePlan = Callable[..., Plan]
VOLUMES = {"several windows": (10, 24, 20), "smaller than a window": (3, 11, 16), "deep": (21, 16, 16)}


def noise(shape: tuple[int, int, int], channels: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((channels, *shape)).astype(np.float32)


@torch.inference_mode()
def whole_windows(model: nn.Module, image: NDArray[np.float32], plan: Plan, axes: tuple[int, ...] = ()) -> Tensor:
    """Run the network on every flip of each window, flip back, average, and blend."""
    halo = model.halo
    assert isinstance(halo, int)
    padded, before = pad_to_size(image, plan.patch_size)
    size = padded.shape[1:]
    x = torch.from_numpy(np.pad(padded, ((0, 0), (halo, halo), (0, 0), (0, 0)), mode="edge"))[None]
    weight = gaussian_importance(plan.patch_size)
    total, blended = torch.zeros(size), torch.zeros((plan.num_classes, *size))
    flips = [f for n in range(len(axes) + 1) for f in itertools.combinations([axis + 2 for axis in axes], n)]
    for start in itertools.product(*(window_starts(n, w) for n, w in zip(size, plan.patch_size, strict=True))):
        d, h, w = (slice(a, a + n) for a, n in zip(start, plan.patch_size, strict=True))
        window = x[:, :, d.start : d.stop + 2 * halo, h, w]
        logits = torch.stack([model(window.flip(f)).flip(f)[0] for f in flips]).mean(0)
        blended[:, d, h, w] += logits * weight
        total[d, h, w] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    return (blended / total)[(slice(None), *inside)]


@pytest.mark.parametrize("shape", VOLUMES.values(), ids=VOLUMES.keys())
@pytest.mark.parametrize("adjacent", [1, 3])
def test_equals_whole_windows(shape: Any, adjacent: int, make_plan: MakePlan, build: Build) -> None:
    plan = make_plan()
    model = build(plan, adjacent_slices=adjacent)
    image = noise(shape)
    torch.testing.assert_close(
        predict_logits(model, image, plan, schedule=Schedule(chunk=3)),
        whole_windows(model, image, plan),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1, 2)])
def test_mirroring_equals_whole_windows(axes: tuple[int, ...], make_plan: MakePlan, build: Build) -> None:
    plan = make_plan(channels=("A", "B"), intensity=make_plan().intensity * 2)
    model = build(plan)
    image = noise((6, 18, 16), channels=2)
    mirrored = predict_logits(model, image, plan, tta_axes=axes)
    torch.testing.assert_close(mirrored, whole_windows(model, image, plan, axes), atol=1e-5, rtol=0)
    assert (mirrored - predict_logits(model, image, plan)).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [{"encoder": "identity"}, {"baseline": "dynunet"}], ids=str)
def test_networks_without_tokens(settings: dict[str, str], make_plan: MakePlan, build: Build) -> None:
    if "baseline" in settings:
        pytest.importorskip("monai")
    plan = make_plan(patch_size=(8, 16, 16))
    model = build(plan, **settings)
    image = noise((10, 16, 20))
    expected = whole_windows(model, image, plan, (0, 1))
    torch.testing.assert_close(predict_logits(model, image, plan, tta_axes=(0, 1)), expected, atol=1e-5, rtol=0)


def test_equals_monai(make_plan: MakePlan, build: Build) -> None:
    inferers = pytest.importorskip("monai.inferers")
    plan = make_plan()
    model = build(plan, adjacent_slices=3)
    image = noise((11, 24, 21))
    x = torch.from_numpy(np.pad(image, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge"))[None]
    stacked = torch.cat([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], dim=1)  # neighbours as channels

    def network(window: Tensor) -> Tensor:
        before, centre, after = window.split(1, dim=1)
        result = model(torch.cat([before[:, :, :1], centre, after[:, :, -1:]], dim=2))
        assert isinstance(result, Tensor)
        return result

    inferer = inferers.SlidingWindowInferer(plan.patch_size, sw_batch_size=4, overlap=0.5, mode="gaussian")
    with torch.inference_mode():
        expected = inferer(stacked, network)[0]
    logits = predict_logits(model, image, plan)
    assert (logits - expected).abs().max() < 1e-4
    assert torch.equal(logits.argmax(0), expected.argmax(0))


@pytest.mark.parametrize(("axes", "passes"), [((), 1), ((0,), 1), ((1, 2), 4), ((0, 1, 2), 4)])
def test_each_slice_is_encoded_once(
    axes: tuple[int, ...], passes: int, make_plan: MakePlan, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    model: Any = build(plan, adjacent_slices=3)
    slices = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x: slices.append(x.shape[2] - 2) or encode(x))
    predict_logits(model, noise((13, 16, 24)), plan, tta_axes=axes, schedule=Schedule(chunk=5))
    columns = 1 * 2
    assert sum(slices) == 13 * columns * passes
    assert max(slices) == 5


def test_constant_in_constant_out(make_plan: MakePlan, nearest_model: nn.Module) -> None:
    image = np.full((1, 9, 30, 21), 170.0, np.float32)
    logits = predict_logits(nearest_model, image, make_plan(), tta_axes=(0, 1, 2))
    expected = torch.tensor([-(1.7**2), -(0.7**2), -(0.3**2), -(1.3**2)]).view(4, 1, 1, 1)
    torch.testing.assert_close(logits, expected.expand(4, 9, 30, 21), atol=1e-5, rtol=1e-5)


def test_result_is_float32_and_the_input_is_untouched(make_plan: MakePlan, build: Build) -> None:
    plan = make_plan()
    image = noise((4, 16, 16))
    before = image.copy()
    logits = predict_logits(build(plan), image, plan, autocast=torch.bfloat16)
    exact = predict_logits(build(plan), image, plan)
    assert logits.dtype == torch.float32
    assert 0 < (logits - exact).abs().max() < 0.1 * exact.abs().max()
    assert np.array_equal(image, before)
