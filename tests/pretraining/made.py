"""Made scans for the tests of pretraining."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tests.made.datasets import save_nifti
from volseg.config.load import load_config
from volseg.preprocessing.intensity import Scaling
from volseg.pretraining.slices import SliceSource, ViewShape
from volseg.pretraining.state import PretrainingState
from volseg.pretraining.store import StoredScan
from volseg.training.ranks import Ranks, joined_ranks
from volseg.training.samples import batches

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
    return StoredScan(folder.name, folder, values.shape, spacing_mm, (0, 0, 0), (is_ct,))


def source(scan: StoredScan, axes: tuple[int, ...] = (0, 1, 2)) -> SliceSource:
    return SliceSource(scan, axes, (Scaling(-np.inf, np.inf, 0, 1),))


class ViewSamples(Dataset[dict[str, Any]]):
    """Sample ``i`` is noise in the shapes of views, drawn from the seed ``i``, in the default precision."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        masked = torch.zeros(2, 16, dtype=torch.bool)
        masked[index % 2, : 2 + index % 5] = True
        large = torch.randn(2, 1, 56, 56, generator=generator) + index % 3
        return {"global": large, "local": torch.randn(2, 1, 28, 28, generator=generator), "masked": masked, "case": "c"}


def pretrain_steps(ranks: Ranks, folder: Path) -> None:
    """Run a few steps in float64; every process writes losses, gradient norms and the teacher."""
    torch.set_default_dtype(torch.float64)
    config = load_config("pretrain", [*SMALL, "train.max_steps=4", "train.lr=1e-4"])
    state = PretrainingState(config, None, ranks)
    stream = batches(ViewSamples(), config, 0, ranks)
    outcomes = [state.step(next(stream), step, step / 4) for step in range(4)]
    numbers = {"loss": [one.loss for one in outcomes], "norm": [one.gradient_norm for one in outcomes]}
    result = {name: torch.stack(values).double() for name, values in numbers.items()}
    torch.save({**result, **state.teacher.state_dict()}, folder / f"{ranks.rank}-of-{ranks.size}.pt")
    torch.set_default_dtype(torch.float32)


def pretrain_together(folder: Path) -> None:
    """Run the steps in the processes of ``torchrun``."""
    with joined_ranks(os.environ) as ranks:
        pretrain_steps(ranks, folder)
