"""Restoring alone: from logits on the plan's grid to a mask on the scan's grid, beside nnU-Net's export."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from metrics import organ_shapes
from prediction import inside_nnunet
from prediction import nnunet_environment as nnunet
from prediction.networks import SEED, Size, plan_for
from shared.measure import cost_of, run_function, timed
from shared.record import save
from shared.text import say
from volseg.geometry.grid import Grid
from volseg.geometry.resample import resampled_grid
from volseg.geometry.trace import Step, Trace
from volseg.inference.restore import logits_to_mask

SOURCE, WORKING = (200, 512, 512), (200, 171, 171)
QUICK_SOURCE, QUICK_WORKING = (16, 96, 96), (16, 32, 32)
CLASSES = (25, 14)
LIMIT_BYTES = 18 * 2**30
THICKNESS_MM, PIXEL_MM = 1.0, 0.5
"""The scan's voxels; the working grid is coarser in plane by exactly the ratio of the shapes, so that volseg's
geometry (exact spacing, centres aligned) and nnU-Net's (exact shape, edges aligned) agree on the voxels."""


def restore(args: argparse.Namespace) -> None:
    """Measure every number of classes; a pair is a process of volseg and one of nnU-Net, on the same file of logits."""
    source, working = (QUICK_SOURCE, QUICK_WORKING) if args.quick else (SOURCE, WORKING)
    for classes in (4,) if args.quick else CLASSES:
        with tempfile.TemporaryDirectory() as folder:
            logits = organ_logits(working, classes)
            file = Path(folder) / "logits.npy"
            np.save(file, logits)
            started = time.perf_counter()
            oracle_s, expected = timed(lambda x=logits: interpolated_mask(x, source))
            rows = [pair(args, Path(folder), source, working, expected) for _ in range(args.pairs)]
            result = {"pairs": rows, **medians(rows), "oracle_s": oracle_s, "logits_bytes": logits.nbytes}
            result |= {"foreground": float((expected > 0).mean()), "border": border_share(logits.argmax(0))}
            settings = {"classes": classes, "source": source, "working": working, "seed": SEED, "threads": args.threads}
            save(args.out, f"restore_{classes}", settings, result, time.perf_counter() - started)


def organ_logits(shape: Size, classes: int) -> NDArray[np.float32]:
    """Return ``(K, D, H, W)``: seeded organs with soft edges, and smooth noise over several voxels."""
    rng = np.random.default_rng(SEED)
    voxels = int(np.prod(shape))
    sizes = [round(n) for n in np.geomspace(voxels // 3000, voxels // 50, classes - 1)]
    labels = organ_shapes.reference(shape, sizes, (THICKNESS_MM, *in_plane_mm(shape)), rng)
    logits = np.empty((classes, *shape), np.float32)
    for number, out in enumerate(logits):
        coarse = rng.standard_normal([max(2, n // 8) for n in shape]).astype(np.float32)
        uneven = F.interpolate(torch.from_numpy(coarse)[None, None], size=shape, mode="trilinear")[0, 0].numpy()
        np.copyto(out, 12 * ndimage.gaussian_filter((labels == number).astype(np.float32), 1.0) + uneven)
    return logits


def in_plane_mm(working: Size) -> tuple[float, float]:
    """Return the pixel size of the working grid, in mm."""
    source = QUICK_SOURCE if working == QUICK_WORKING else SOURCE
    height, width = (PIXEL_MM * n / m for n, m in zip(source[1:], working[1:], strict=True))
    return height, width


def trace_of(source: Size, working: Size) -> Trace:
    """Return the resampling from the scan to the working grid."""
    grid = Grid(source, np.diag([THICKNESS_MM, PIXEL_MM, PIXEL_MM, 1.0]))
    target = resampled_grid(grid, (THICKNESS_MM, *in_plane_mm(working)))
    assert target.shape == working, (target.shape, working)
    return Trace(grid, (Step("resample", grid, target),))


def interpolated_mask(logits: NDArray[np.float32], source: Size) -> NDArray[np.uint8]:
    """Interpolate all logits linearly, then argmax: the oracle. Depth is the same, so it goes slice by slice."""
    assert logits.shape[1] == source[0]
    mask = np.empty(source, np.uint8)
    for index in range(source[0]):
        plane = torch.from_numpy(logits[:, index])[None]  # (1, K, H, W)
        mask[index] = F.interpolate(plane, size=source[1:], mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    return mask


def border_share(labels: NDArray[Any]) -> float:
    """Return the share of voxels with a neighbour of another class in plane, which cannot be copied."""
    mixed = np.zeros(labels.shape, bool)
    mixed[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
    return float(mixed.mean())


def pair(
    args: argparse.Namespace, folder: Path, source: Size, working: Size, expected: NDArray[Any]
) -> dict[str, dict[str, Any]]:
    """Measure volseg, and nnU-Net where its environment exists: seconds, memory, and voxels equal to the oracle."""
    mask = folder / "mask.npy"
    settings = {"logits_file": str(folder / "logits.npy"), "mask_file": str(mask), "threads": args.threads}
    rows = {"ours": run_function(restore_file, {**settings, "shape": source}, limit_bytes=LIMIT_BYTES)}
    rows["ours"]["equal_voxels"] = equal_voxels(mask, expected)
    if nnunet.check_ready(args.nnunet):
        settings |= {"folder": str(nnunet.model_folder(args.nnunet)), "shape": source}
        settings |= {"spacing_mm": (THICKNESS_MM, PIXEL_MM, PIXEL_MM)}
        settings |= {"working_spacing_mm": (THICKNESS_MM, *in_plane_mm(working))}
        rows["nnunet"] = nnunet.run_inside(args.nnunet, inside_nnunet.export, settings, LIMIT_BYTES)
        rows["nnunet"]["equal_voxels"] = equal_voxels(mask, expected)
    say(f"  {rows}")
    return rows


def equal_voxels(mask_file: Path, expected: NDArray[Any]) -> float:
    """Return the share of voxels that equal the oracle, and remove the file; 0 if the process was stopped."""
    if not mask_file.exists():
        return 0.0
    share = float((np.load(mask_file) == expected).mean())
    mask_file.unlink()
    return share


def medians(rows: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return medians of the seconds and of their ratio, the highest memory and the lowest agreement over the pairs."""
    summary: dict[str, Any] = {}
    finished = [row for row in rows if not any(tool["stopped"] for tool in row.values())]
    for name in finished[0] if finished else ():
        summary[f"{name}_s"] = statistics.median(row[name]["seconds"] for row in finished)
        summary[f"{name}_above_bytes"] = max(row[name]["above_logits_bytes"] for row in finished)
        summary[f"{name}_equal"] = min(row[name]["equal_voxels"] for row in finished)
    if "nnunet_s" in summary:
        summary["ratio"] = statistics.median(row["nnunet"]["seconds"] / row["ours"]["seconds"] for row in finished)
    return summary


def restore_file(logits_file: str, mask_file: str, threads: int, shape: list[int]) -> dict[str, Any]:
    """Restore a file of logits in this process; return seconds, and memory above the logits (mask included)."""
    torch.set_num_threads(threads)
    logits = torch.from_numpy(np.load(logits_file))
    working = (logits.shape[1], logits.shape[2], logits.shape[3])
    depth, height, width = shape
    plan, trace = plan_for((32, 128, 128), 8, len(logits)), trace_of((depth, height, width), working)
    cost, mask = cost_of(lambda: logits_to_mask(logits, trace, plan))
    np.save(mask_file, mask)
    return {"seconds": cost.seconds, "above_logits_bytes": cost.above_bytes, "process_bytes": cost.peak_bytes}
