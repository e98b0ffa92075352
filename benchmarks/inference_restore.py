"""Restoring alone: from logits on a working grid to a mask on the scan's grid, beside nnU-Net's export."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nnunet
import numpy as np
import organ_shapes
import torch
from networks import SEED, Size, plan_for
from numpy.typing import NDArray
from processes import memory_bytes, peak_bytes, reset_peak, run_watched
from record import save, say, timed
from scipy import ndimage
from torch.nn import functional as F

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
geometry (exact spacing, centres aligned) and nnU-Net's (exact shape, edges aligned) mean the same voxels."""


def restore(args: argparse.Namespace) -> None:
    """Every number of classes; a pair is a process of ours and one of nnU-Net's, on the same file of logits."""
    source, working = (QUICK_SOURCE, QUICK_WORKING) if args.quick else (SOURCE, WORKING)
    for classes in (4,) if args.quick else CLASSES:
        with tempfile.TemporaryDirectory() as folder:
            logits = organ_logits(working, classes)
            file = Path(folder) / "logits.npy"
            np.save(file, logits)
            started = time.perf_counter()
            oracle_s, expected = timed(lambda x=logits: oracle(x, source))  # type: ignore[misc]
            rows = [pair(args, Path(folder), source, working, expected) for _ in range(args.pairs)]
            result = {"pairs": rows, **medians(rows), "oracle_s": oracle_s, "logits_bytes": logits.nbytes}
            result |= {"foreground": float((expected > 0).mean()), "border": border_share(logits.argmax(0))}
            settings = {"classes": classes, "source": source, "working": working, "seed": SEED, "threads": args.threads}
            save(args.out, f"inference_restore_{classes}", settings, result, time.perf_counter() - started)


def organ_logits(shape: Size, classes: int) -> NDArray[np.float32]:
    """(K, D, H, W): seeded organs with soft edges, and an unevenness of several voxels as networks have it."""
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
    """Pixel size of the working grid of a scan of three times as many pixels."""
    source = QUICK_SOURCE if working == QUICK_WORKING else SOURCE
    height, width = (PIXEL_MM * n / m for n, m in zip(source[1:], working[1:], strict=True))
    return height, width


def trace_of(source: Size, working: Size) -> Trace:
    """The resampling that leads from the scan to the working grid."""
    grid = Grid(source, np.diag([THICKNESS_MM, PIXEL_MM, PIXEL_MM, 1.0]))
    target = resampled_grid(grid, (THICKNESS_MM, *in_plane_mm(working)))
    assert target.shape == working, (target.shape, working)
    return Trace(grid, (Step("resample", grid, target),))


def oracle(logits: NDArray[np.float32], source: Size) -> NDArray[np.uint8]:
    """Linear interpolation of all logits, then argmax; slice by slice, as depth stays as it is."""
    assert logits.shape[1] == source[0]
    mask = np.empty(source, np.uint8)
    for index in range(source[0]):
        plane = torch.from_numpy(logits[:, index])[None]  # (1, K, H, W)
        mask[index] = F.interpolate(plane, size=source[1:], mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    return mask


def border_share(labels: NDArray[Any]) -> float:
    """Share of voxels that have a neighbour of another class in plane: what an exact restoring cannot copy."""
    mixed = np.zeros(labels.shape, bool)
    mixed[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[:, :, 1:] |= labels[:, :, 1:] != labels[:, :, :-1]
    return float(mixed.mean())


def pair(
    args: argparse.Namespace, folder: Path, source: Size, working: Size, expected: NDArray[Any]
) -> dict[str, dict[str, Any]]:
    """Ours, and nnU-Net's where its environment is there: seconds, memory, and voxels equal to the oracle."""
    geometry = {
        "shape": source,
        "spacing_mm": (THICKNESS_MM, PIXEL_MM, PIXEL_MM),
        "working_spacing_mm": (THICKNESS_MM, *in_plane_mm(working)),
    }
    threads, file, mask = str(args.threads), str(folder / "logits.npy"), folder / "mask.npy"
    here = Path(__file__).parent
    child = ["restore-child", file, str(mask), threads, json.dumps(geometry)]
    commands = {"ours": ([sys.executable, str(here / "inference_restore.py"), *child], None)}
    if nnunet.is_ready(args.nnunet):
        inner = ["export", str(nnunet.model_folder(args.nnunet)), *child[1:]]
        python = nnunet.command(args.nnunet, "python")
        commands["nnunet"] = ([python, str(here / "nnunet_child.py"), *inner], nnunet.clean_environment())
    else:
        say("nnU-Net is not there (benchmarks/nnunet.py makes it); ours is measured alone")
    rows = {}
    for name, (command, environment) in commands.items():
        rows[name] = run_watched(command, LIMIT_BYTES, environment)
        if not rows[name]["stopped"]:
            rows[name]["equal_voxels"] = float((np.load(mask) == expected).mean())
            mask.unlink()
        say(f"  {name}: {rows[name]}")
    return rows


def medians(rows: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Over the pairs: medians of the seconds and of their ratio, the highest memory, the lowest agreement."""
    found: dict[str, Any] = {}
    finished = [row for row in rows if not any(tool["stopped"] for tool in row.values())]
    for name in finished[0] if finished else ():
        found[f"{name}_s"] = statistics.median(row[name]["seconds"] for row in finished)
        found[f"{name}_above_bytes"] = max(row[name]["above_logits_bytes"] for row in finished)
        found[f"{name}_equal"] = min(row[name]["equal_voxels"] for row in finished)
    if "nnunet_s" in found:
        found["ratio"] = statistics.median(row["nnunet"]["seconds"] / row["ours"]["seconds"] for row in finished)
    return found


def child(logits_file: str, mask_file: str, threads: str, geometry: str) -> dict[str, Any]:
    """Restore once in a process of its own; time, and memory above the logits (the mask is in it)."""
    torch.set_num_threads(int(threads))
    logits = torch.from_numpy(np.load(logits_file))
    working = (logits.shape[1], logits.shape[2], logits.shape[3])
    plan = plan_for((32, 128, 128), 8, len(logits))
    trace = trace_of(tuple(json.loads(geometry)["shape"]), working)
    reset_peak()
    before = memory_bytes()
    seconds, mask = timed(lambda: logits_to_mask(logits, trace, plan))
    peak = peak_bytes()
    np.save(mask_file, mask)
    return {"seconds": seconds, "above_logits_bytes": peak - before, "process_bytes": peak}


if __name__ == "__main__":
    print(json.dumps(child(*sys.argv[2:])))
