"""A whole CT through the command of volseg, and through MONAI's transforms, sliding window and inversion."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from card.bundle import predict_as_bundles
from card.device import peak_memory_mb, precisions, reset_peak_memory, synchronize
from prediction.networks import Size, model_file, plan_for, random_network, smooth_volume
from shared.measure import cost_of
from shared.record import ROOT, Record
from volseg.planning.plan import Plan

TOKEN_STRIDE, CLIP_HU, HU_PER_DEVIATION = 8, 1000.0, 400.0
STORED_MM, WORKING_MM = 0.8, 1.5
SIZES: dict[str, tuple[str, Size, Size, int]] = {
    "full": ("dinov2_s14", (600, 512, 512), (32, 128, 128), 25),
    "quick": ("dinov2_s14", (150, 512, 512), (32, 128, 128), 25),
    "tiny": ("tiny", (24, 64, 64), (8, 32, 32), 3),
}
"""Encoder, stored voxels (D, H, W), window, classes."""


def rows(device: str, size: str) -> Iterator[Record]:
    """Yield the row of volseg's command and the row of MONAI, for one made CT with random weights."""
    encoder, shape, window, classes = SIZES[size]
    plan = plan_for(window, TOKEN_STRIDE, classes, WORKING_MM, CLIP_HU)
    settings = {"encoder": encoder, "voxels": list(reversed(shape)), "classes": classes, "window": list(window)}
    with tempfile.TemporaryDirectory() as folder:
        scan = write_ct(Path(folder) / "scan" / "ct.nii.gz", shape)
        model = model_file(Path(folder) / "model.safetensors", plan, encoder)
        yield {"way": "volseg predict", **settings, **by_command(model, scan, Path(folder) / "volseg", device)}
        yield {"way": "MONAI", **settings, **by_monai(plan, encoder, scan, Path(folder) / "monai", device)}


def write_ct(path: Path, shape: Size) -> Path:
    """Write a made CT of (D, H, W) voxels as int16, as scanners do."""
    half = smooth_volume((shape[0] // 2, shape[1] // 2, shape[2] // 2))[0]
    values = np.repeat(np.repeat(np.repeat(half, 2, axis=0), 2, axis=1), 2, axis=2)
    hounsfield = (HU_PER_DEVIATION * values).astype(np.int16).transpose(2, 1, 0)
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(hounsfield, np.diag([STORED_MM, STORED_MM, STORED_MM, 1.0])), path)
    return path


def by_command(model: Path, scan: Path, output: Path, device: str) -> Record:
    """Run ``volseg predict`` in a process; the stages and the peaks of memory are those of its record."""
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), "--device", device]
    started = time.perf_counter()
    subprocess.run(
        [*command, "-m", str(model), "-i", str(scan.parent), "-o", str(output)], check=True, stdout=sys.stderr
    )
    wall_s = time.perf_counter() - started
    lines = (output / "records.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[-1])
    return row(record["seconds"], wall_s, record["peak_rss_mb"], record["peak_device_mb"])


def by_monai(plan: Plan, encoder: str, scan: Path, output: Path, device: str) -> Record:
    """Predict the scan with MONAI in this process, in the precision of volseg's command, without its start-up."""
    import monai.transforms  # noqa: F401  (takes seconds)

    model, seconds = random_network(plan, encoder=encoder).to(device), dict[str, float]()
    precision = precisions(device)[0] if device.startswith("cuda") else "float32"
    last = time.perf_counter()

    def finished(stage: str) -> None:
        nonlocal last
        synchronize(device)
        now = time.perf_counter()
        seconds[stage], last = now - last, now

    reset_peak_memory(device)
    cost, _ = cost_of(lambda: predict_as_bundles(model, plan, scan, output, device, precision, finished))
    return row(seconds, cost.seconds, cost.peak_bytes / 1e6, peak_memory_mb(device))


def row(seconds: dict[str, float], wall_s: float, peak_rss_mb: float | None, peak_device_mb: float | None) -> Record:
    """Return a row: stages, wall time with start-up, the share of the stages but the network, peaks of memory."""
    total = sum(seconds.values())
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "stages_s": round(total, 2),
        "wall_s": round(wall_s, 2),
        "share_besides_network": round(1 - seconds["network"] / total, 3),
        "peak_rss_mb": peak_rss_mb,
        "peak_device_mb": peak_device_mb,
    }
