"""Restoring against the straightforward way: interpolate all logits in float64, then argmax."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from tests.made.traces import resample, uncrop
from volseg.geometry.grid import Grid
from volseg.geometry.trace import Trace
from volseg.inference.restore import Member, copied_to_cpu, logits_to_mask, restore_mask
from volseg.planning.plan import Plan

MakePlan = Callable[..., Plan]


def traced(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], target: tuple[float, float, float], codes: str
) -> Trace:
    """Reorient, crop a voxel off each side where there is room, resample."""
    data = np.zeros((1, *shape), np.float32)
    data, trace = Trace(Grid(shape, np.diag([*spacing, 1.0]))).reorient(data, codes)
    start = [int(n > 2) for n in data.shape[1:]]
    data, trace = trace.crop(data, start, [n - a for n, a in zip(data.shape[1:], start, strict=True)])
    return resample(trace, data, target)[1]


def smooth_logits(classes: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random logits whose classes form blobs."""
    noise = np.random.default_rng(seed).standard_normal((classes, *shape))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 1, 1, 1)).astype(np.float32))


def naive(logits: torch.Tensor, trace: Trace, plan: Plan) -> NDArray[np.int64]:
    """The argmax of all logits at the scan's resolution."""
    labels = np.array(plan.label_values)[np.argmax(interpolated(logits, trace, plan), axis=0)]
    return uncrop(trace, labels)


def interpolated(logits: torch.Tensor, trace: Trace, plan: Plan) -> NDArray[np.float64]:
    """All logits at the scan's resolution, by scipy."""
    axes = []
    for number, (axis, n) in enumerate(zip(trace.axis_maps(), trace.cropped.shape, strict=True)):
        at = axis.scale * np.arange(n) + axis.offset
        axes.append(np.floor(at + 0.5 + 1e-9) if number == 0 and plan.nearest_depth else at)
    where = np.meshgrid(*axes, indexing="ij")
    full = [ndimage.map_coordinates(x.astype(np.float64), where, order=1, mode="nearest") for x in logits.numpy()]
    return np.array(full)


@pytest.mark.parametrize("nearest_depth", [False, True])
@pytest.mark.parametrize(
    ("shape", "spacing", "target", "codes"),
    [
        ((12, 14, 10), (2.0, 2.0, 2.0), (2.0, 2.0, 2.0), "SPL"),  # nothing to interpolate
        ((30, 28, 9), (0.8, 0.8, 5.0), (5.0, 1.7, 1.7), "SPL"),  # a finer scan
        ((13, 12, 11), (3.0, 2.5, 2.0), (1.1, 1.3, 0.9), "AIL"),  # a coarser scan
        ((11, 1, 17), (1.0, 9.0, 1.3), (2.1, 1.0, 2.3), "RIP"),  # a single slice
    ],
)
def test_equals_interpolating_everything(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    target: tuple[float, float, float],
    codes: str,
    nearest_depth: bool,
    make_plan: MakePlan,
) -> None:
    plan = make_plan(nearest_depth=nearest_depth)
    trace = traced(shape, spacing, target, codes)
    logits = smooth_logits(plan.num_classes, trace.target.shape)
    mask = logits_to_mask(logits, trace, plan)
    assert mask.shape == shape
    assert mask.dtype == np.uint16
    assert np.array_equal(mask, naive(logits, trace, plan))
    assert len(np.unique(mask)) > 1


def test_rough_logits(make_plan: MakePlan) -> None:
    """Every voxel a class of its own: nothing can be taken over from neighbours that agree."""
    plan = make_plan(labels={f"class {k}": k for k in range(25)})
    trace = traced((19, 23, 11), (0.9, 1.1, 3.0), (3.0, 2.0, 2.0), "SPL")
    logits = torch.from_numpy(np.random.default_rng(3).standard_normal((25, *trace.target.shape)).astype(np.float32))
    mask = logits_to_mask(logits, trace, plan)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, naive(logits, trace, plan))


def test_hand_computed(make_plan: MakePlan) -> None:
    """Two working voxels of 2 mm with logits 0 against -3 and +1 cross at three quarters of the way between them."""
    plan = make_plan(labels={"background": 0, "organ": 7}, spacing_mm=(1.0, 1.0, 10.0))
    trace = resample(Trace(Grid((1, 1, 20), np.eye(4))), np.zeros((1, 1, 1, 20)), (1.0, 1.0, 10.0))[1]
    logits = torch.tensor([[[[0.0, 0.0]]], [[[-3.0, 1.0]]]])  # (2, 1, 1, 2); centres at 4.5 and 14.5: crossing at 12
    mask = logits_to_mask(logits, trace, plan)
    assert mask[0, 0].tolist() == [0] * 13 + [7] * 7  # a tie, at 12, goes to the lower class


def test_cropped_voxels_are_background(make_plan: MakePlan) -> None:
    plan = make_plan()
    trace = traced((6, 7, 8), (2.0, 2.0, 2.0), (2.0, 2.0, 2.0), "RAS")
    logits = torch.zeros((4, *trace.target.shape))
    logits[3] = 1.0
    mask = logits_to_mask(logits, trace, plan)
    assert (mask[1:-1, 1:-1, 1:-1] == 600).all()
    assert np.count_nonzero(mask) == 4 * 5 * 6


REGIONS = {"whole": (1, 2, 300), "core": (2, 300), "tip": (300,)}


def painted(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """As nnU-Net's `LabelManager.convert_probabilities_to_segmentation` paints regions."""
    mask = np.zeros(probabilities.shape[1:], np.int64)
    for index, value in enumerate((1, 2, 300)):
        mask[probabilities[index] > 0.5] = value
    return mask


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("target", [(2.0, 2.0, 2.0), (5.0, 1.7, 1.7)])
def test_regions_are_decided_each_on_its_own_and_painted_in_their_order(
    target: tuple[float, float, float], members: int, make_plan: MakePlan
) -> None:
    plan = make_plan(labels={"background": 0, "whole": 1, "core": 2, "tip": 300}, regions=REGIONS)
    trace = traced((14, 13, 12), (2.0, 2.0, 2.0), target, "SPL")
    logits = [smooth_logits(3, trace.target.shape, seed) for seed in range(members)]
    mask = restore_mask([Member([(0, logits)], trace)], plan.mask_values, regions=True)
    sums = [1 / (1 + np.exp(-interpolated(one, trace, plan))) for one in logits]
    expected = uncrop(trace, painted(np.mean(sums, axis=0)))
    assert np.array_equal(mask, expected)
    assert set(np.unique(mask)) == {0, 1, 2, 300}
    if members == 1:
        assert np.array_equal(logits_to_mask(logits[0], trace, plan), mask)


def test_the_largest_label(make_plan: MakePlan) -> None:
    plan = make_plan(labels={"background": 0, "organ": 65_535})
    trace = Trace(Grid((1, 1, 2), np.eye(4)))
    mask = logits_to_mask(torch.tensor([[[[0.0, 1.0]]], [[[1.0, 0.0]]]]), trace, plan)
    assert mask.dtype == np.uint16
    assert mask.tolist() == [[[65_535, 0]]]


@pytest.mark.parametrize("rounding", [-1e-7, 0.0, 1e-7])
def test_the_nearest_slice_is_the_upper_one_of_two_however_rounded(rounding: float, make_plan: MakePlan) -> None:
    """Every second slice of 301 lies halfway between two of 151; the affine of a file is rounded to float32."""
    values = {f"class {k}": k for k in range(151)}
    plan = make_plan(labels=values, nearest_depth=True)
    trace = Trace(Grid((301, 1, 1), np.diag([1.0 + rounding, 1, 1, 1])))
    trace = resample(trace, np.zeros((1, 301, 1, 1)), (2.0, 1.0, 1.0))[1]
    mask = logits_to_mask(torch.eye(151)[..., None, None], trace, plan)
    assert np.array_equal(mask.ravel(), (np.arange(301) + 1) // 2)


def test_a_slice_of_another_gpu_is_waited_for_in_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current stream of the first GPU knows nothing of a copy from the second."""
    values: Any = SimpleNamespace(device=torch.device("cuda:1"), to=lambda name, non_blocking: (name, non_blocking))

    def stream(device: Any = None) -> Any:
        return SimpleNamespace(record_event=lambda: f"event of {device}")

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    assert copied_to_cpu(values) == (("cpu", True), "event of cuda:1")
