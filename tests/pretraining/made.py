"""Made scans for the tests of pretraining."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.made.datasets import save_nifti
from volseg.preprocessing.intensity import Scaling
from volseg.pretraining.slices import SliceSource, ViewShape
from volseg.pretraining.store import StoredScan

SHAPE = ViewShape(patch=14, token_stride=4, global_tokens=4, local_tokens=2, local_views=3)
SMALL = [
    *("model.encoder=tiny", "train.batch_size=4", "train.validate_cases=2", "data.workers=0", "device=cpu"),
    *("precision=32", "pretrain.prototypes=16", "pretrain.head_width=32", "pretrain.token_stride=4"),
    *("pretrain.global_tokens=4", "pretrain.local_views=2"),
]
"""Settings of a run that takes seconds."""


def write_scans(root: Path, count: int, shape: tuple[int, int, int] = (20, 22, 18)) -> Path:
    """Write MRI scans without labels: a bright blob whose size changes along every axis, in noise."""
    rng = np.random.default_rng(0)
    at = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    for number in range(count):
        blob = sum(((x + 0.4 * rng.uniform(-1, 1)) / s) ** 2 for x, s in zip(at, (0.9, 0.5, 0.7), strict=True)) < 1
        values = 200 * blob + 50 * (at[0] > 0.2) + rng.normal(100, 10, shape)
        save_nifti(root / f"scan{number}.nii.gz", values.astype(np.float32))
    return root


def stored(
    folder: Path, values: np.ndarray, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), *, is_ct: bool = False
) -> StoredScan:
    """Write an array (I, P, L) as a stored scan of one channel."""
    folder.mkdir(parents=True)
    np.save(folder / "volume.npy", values[None].astype(np.float16))
    np.save(folder / "samples.npy", values.reshape(-1).astype(np.float32) if is_ct else np.zeros(0, np.float32))
    return StoredScan(folder.name, folder, values.shape, spacing_mm, (is_ct,))


def source(scan: StoredScan, axes: tuple[int, ...] = (0, 1, 2)) -> SliceSource:
    return SliceSource(scan, axes, (Scaling(-np.inf, np.inf, 0, 1),))
