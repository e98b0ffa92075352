"""Memory of one prediction, by volseg or MONAI, measured in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prediction.monai_inferer import monai_logits, whole_network, with_neighbours
from prediction.networks import Size, plan_for, random_network
from shared.measure import cost_of, memory_bytes, timed
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.heap import reuse_freed_memory
from volseg.inference.sliding.windows import window_starts
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import preprocess_image

SPACING_MM = 1.0
SLAB = 16
IMPORTED_LATE = ("monai.inferers", "volseg.inference.predictor")
"""Modules that are imported at the first call; code is not part of the measured memory."""


def measure(way: str, threads: int, max_memory_bytes: int, **sizes: Any) -> dict[str, Any]:
    """Predict a made scan and return seconds and memory.

    Args:
        way: ``volseg`` or ``monai``.
        threads: Threads of torch.
        max_memory_bytes: volseg's limit.
        sizes: ``slices``, ``side``, ``classes``, ``window``, ``stride`` and ``network`` (settings of the model).
    """
    model, plan, shape = set_up(threads, **sizes)
    scan = synthetic_scan(shape)
    for name in IMPORTED_LATE:
        import_module(name)
    predict: Callable[[], tuple[NDArray[Any], dict[str, Any]]]
    if way == "volseg":
        predict = lambda: by_volseg(model, plan, scan, max_memory_bytes)  # noqa: E731
    else:
        predict = lambda: (by_monai(model, plan, scan), {})  # noqa: E731
    try:
        cost, (mask, details) = cost_of(predict)
    except RuntimeError as error:
        return {"stopped": True, "process_bytes": memory_bytes() + refused_bytes(error)}
    return {
        "seconds": round(cost.seconds, 2),
        "above_bytes": cost.above_bytes - mask.nbytes,
        "before_bytes": cost.before_bytes,
        "scan_bytes": scan.data.nbytes,
        "mask_bytes": mask.nbytes,
        "process_bytes": cost.peak_bytes,
        "classes_found": len(np.unique(mask[:: max(1, len(mask) // 8)])),
        **details,
    }


def seconds_per_slice(threads: int, **sizes: Any) -> dict[str, float]:
    """Return the seconds of the network per slice of the scan, from the time of one window."""
    model, plan, shape = set_up(threads, **sizes)
    network = whole_network(model)
    window = with_neighbours(np.zeros((1, *plan.patch_size), np.float32), model.halo)
    with torch.inference_mode():
        network(window)
        window_s, _ = timed(lambda: network(window))
    windows = [len(window_starts(max(n, w), w)) for n, w in zip(shape, plan.patch_size, strict=True)]
    return {"slice_s": window_s * int(np.prod(windows)) / shape[0]}


def set_up(
    threads: int, slices: int, side: int, classes: int, window: list[int], stride: int, network: dict[str, Any]
) -> tuple[SegmentationNetwork, Plan, Size]:
    """Return network, plan and shape of the scan."""
    torch.set_num_threads(threads)
    reuse_freed_memory()  # as the commands do
    depth, height, width = window
    plan = plan_for((depth, height, width), stride, classes, SPACING_MM)
    return random_network(plan, **network), plan, (slices, side, side)


def refused_bytes(error: RuntimeError) -> int:
    """Return the size of the tensor for which there was no memory; other errors are raised again."""
    size = re.search(r"you tried to allocate (\d+) bytes", str(error))
    if size is None:
        raise error
    return int(size[1])


def synthetic_scan(shape: Size) -> Volume:
    """Return a seeded scan ``(1, D, H, W)`` int16 in the working orientation, made slab by slab in its own memory.

    Soft tissue with coarse structures and noise; no slice is air only, so no window is skipped.
    """
    data = np.empty((1, *shape), np.int16)
    rng = np.random.default_rng(0)
    rows, columns = (np.arange(n, dtype=np.float32) for n in shape[1:])
    for start in range(0, shape[0], SLAB):
        slab = data[0, start : start + SLAB]
        depth = np.arange(start, start + len(slab), dtype=np.float32)[:, None, None]
        wave = np.sin(depth / 9 + rows[:, None] / 23) * np.cos(columns / 31 - depth / 40)
        np.copyto(slab, 40 + 200 * wave + rng.normal(0, 20, slab.shape).astype(np.float32), casting="unsafe")
    affine = np.zeros((4, 4))  # SPL: the slices run up, the rows back, the columns to the left
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = SPACING_MM, -SPACING_MM, -SPACING_MM, 1.0
    return Volume(data, Grid(shape, affine))


def by_volseg(
    model: SegmentationNetwork, plan: Plan, scan: Volume, max_memory_bytes: int
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Predict by volseg: preprocess, stream, restore."""
    from volseg.inference.options import PredictOptions
    from volseg.inference.predictor import Predictor

    predictor = Predictor.from_model(model, plan, device="cpu")
    segmentation = predictor.segment(scan, PredictOptions(max_memory_bytes=max_memory_bytes))
    return segmentation.mask.labels, {"stages_s": dict(segmentation.seconds), "counts": dict(segmentation.counts)}


def by_monai(model: SegmentationNetwork, plan: Plan, scan: Volume) -> NDArray[np.uint8]:
    """Predict by MONAI: preprocess, infer, argmax, with as little memory as it can.

    One window at a time, and argmax slice by slice, because argmax of the whole takes 8 bytes per voxel.
    """
    stacked = with_neighbours(preprocess_image(scan, plan)[0].data, model.halo)
    logits = monai_logits(model, stacked, plan.patch_size, batch=1)
    del stacked
    mask = np.empty(scan.grid.shape, np.uint8)
    for index, out in enumerate(mask):
        np.copyto(out, logits[:, index].argmax(0).numpy(), casting="unsafe")
    return mask
