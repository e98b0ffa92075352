"""One prediction in a process of its own, for its memory; called by ``memory.py`` with its settings as JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from importlib import import_module
from typing import Any

import numpy as np
import torch
from networks import Size, monai_logits, plan_for, random_network, whole_network, with_neighbours
from numpy.typing import NDArray
from processes import memory_bytes, peak_bytes, reset_peak

from volseg.cli.heap import reuse_freed_memory
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.inference.sliding.windows import window_starts
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import preprocess_image

SPACING_MM = 1.0
SLAB = 16


def main() -> dict[str, Any]:
    """Measure what the settings ask for."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    reuse_freed_memory()  # as the commands do
    plan = plan_for(tuple(settings["window"]), settings["stride"], settings["classes"], SPACING_MM)
    model = random_network(plan, **settings["network"])
    shape = (settings["slices"], settings["side"], settings["side"])
    if settings["way"] == "probe":
        return {"slice_s": seconds_per_slice(model, plan, shape)}
    scan = synthetic_scan(shape)
    load_libraries()
    reset_peak()
    before = memory_bytes()
    started = time.perf_counter()
    if settings["way"] == "volseg":
        mask, more = by_volseg(model, plan, scan, settings["max_memory_bytes"])
    else:
        try:
            mask, more = by_monai(model, plan, scan), {}
        except RuntimeError as error:
            return {"stopped": True, "process_bytes": memory_bytes() + refused_bytes(error)}
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    return {
        "seconds": round(seconds, 2),
        "above_bytes": peak - before - mask.nbytes,
        "before_bytes": before,
        "scan_bytes": scan.data.nbytes,
        "mask_bytes": mask.nbytes,
        "process_bytes": peak,
        "classes_found": len(np.unique(mask[:: max(1, len(mask) // 8)])),
        **more,
    }


def refused_bytes(error: RuntimeError) -> int:
    """Size of the tensor that there is no memory for."""
    found = re.search(r"you tried to allocate (\d+) bytes", str(error))
    if found is None:
        raise error
    return int(found[1])


def load_libraries() -> None:
    """Import what the ways import when they are called: code is not what is measured."""
    for name in ("monai.inferers", "volseg.inference.predictor"):
        import_module(name)


def synthetic_scan(shape: Size) -> Volume:
    """Seeded (1, D, H, W) int16 in the working orientation, made a slab at a time in its own memory.

    Soft tissue with coarse structures and noise; no slice is only air, so nothing may be left out.
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
    """The product's own way: prepare, stream, restore."""
    from volseg.inference.options import PredictOptions
    from volseg.inference.predictor import Predictor

    predictor = Predictor.from_model(model, plan, device="cpu")
    found = predictor.segment(scan, PredictOptions(max_memory_bytes=max_memory_bytes))
    return found.mask.labels, {"stages_s": dict(found.seconds), "counts": dict(found.counts)}


def by_monai(model: SegmentationNetwork, plan: Plan, scan: Volume) -> NDArray[np.uint8]:
    """What one writes with MONAI: prepare, infer, argmax; with the least memory that it can do with.

    One window at a time, and argmax slice by slice, as of the whole it would take 8 bytes a voxel.
    """
    stacked = with_neighbours(preprocess_image(scan, plan)[0].data, model.halo)
    logits = monai_logits(model, stacked, plan.patch_size, batch=1)
    del stacked
    mask = np.empty(scan.grid.shape, np.uint8)
    for index, out in enumerate(mask):
        np.copyto(out, logits[:, index].argmax(0).numpy(), casting="unsafe")
    return mask


@torch.inference_mode()
def seconds_per_slice(model: SegmentationNetwork, plan: Plan, shape: Size) -> float:
    """Time of the network for one slice of the scan, from one window."""
    network = whole_network(model)
    window = with_neighbours(np.zeros((1, *plan.patch_size), np.float32), model.halo)
    network(window)
    started = time.perf_counter()
    network(window)
    windows = [len(window_starts(max(n, w), w)) for n, w in zip(shape, plan.patch_size, strict=True)]
    return (time.perf_counter() - started) * int(np.prod(windows)) / shape[0]


if __name__ == "__main__":
    print(json.dumps(main()))
