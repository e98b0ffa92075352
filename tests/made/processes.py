"""Work in two processes that are joined as ``torchrun`` joins them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from tests.made.plans import StubPlan
from volseg.config.load import load_config
from volseg.training.ranks import ALONE, Ranks, joined_ranks
from volseg.training.samples import batches
from volseg.training.state import TrainingState

PLAN = StubPlan()
SMALL = [
    "device=cpu",
    "precision=32",
    "data.workers=0",
    "model.features=4",
    "model.max_features=8",
    "train.max_steps=20",
]
STEPS = 20


def in_two_processes(work: Callable[[Ranks, Path], None], folder: Path) -> None:
    """Call a function of a module in two processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torch.multiprocessing.spawn(_joined, (work, folder, port), nprocs=2)


def _joined(rank: int, work: Callable[[Ranks, Path], None], folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **address}
    with joined_ranks(os.environ) as ranks:
        work(ranks, folder)


class Samples(torch.utils.data.Dataset[dict[str, Any]]):
    """Sample ``i`` is drawn from the seed ``i``; a third of its voxels is ignored, in some samples nearly all."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        depth, height, width = PLAN.patch_size
        label = torch.randint(PLAN.num_classes, (depth, height, width), generator=generator)
        label[torch.rand(label.shape, generator=generator) < (0.95 if index % 3 == 0 else 0.1)] = -1
        image = torch.randn(PLAN.num_channels, depth + 2, height, width, generator=generator)
        image[:, 1:-1] += label  # something to learn
        return {"image": image, "label": label, "case": f"case{index}"}


def trained(settings: list[str], ranks: Ranks = ALONE) -> dict[str, Any]:
    """Train 20 steps; return losses, gradient norms, weights and averaged weights."""
    config = load_config(None, [*SMALL, *settings])
    state = TrainingState(config, PLAN, ranks)
    stream = batches(Samples(), config, 0, ranks)
    outcomes = [state.step(next(stream), step, spent=step / STEPS) for step in range(STEPS)]
    return {
        "loss": torch.stack([outcome.loss for outcome in outcomes]),
        "norm": torch.stack([outcome.gradient_norm for outcome in outcomes]),
        **{f"weights {name}": value for name, value in state.model.state_dict().items()},
        **{f"average {name}": value for name, value in state.average.model.state_dict().items()},
    }


RUNS = {
    "float32": (torch.float32, ["model.encoder=identity", "train.batch_size=4"]),
    "float64": (torch.float64, ["model.encoder=identity", "train.batch_size=4"]),
    "accumulated": (
        torch.float64,
        ["model.encoder=identity", "train.batch_size=2", "train.accumulate=2", "train.deep_supervision=false"],
    ),
    "weighted": (
        torch.float64,
        ["model.encoder=tiny", "model.weights=random", "train.loss=dice_focal", "train.class_weights=[1,2,3]",
         "train.batch_dice=false", "train.batch_size=2"],
    ),
}  # fmt: skip
"""Name -> precision and settings of runs that do not depend on the number of processes."""


def run_all(ranks: Ranks, folder: Path) -> None:
    """Train all runs; every process writes its results."""
    for name, (dtype, settings) in RUNS.items():
        torch.set_default_dtype(dtype)
        torch.save(trained(settings, ranks), folder / f"{name}-{ranks.rank}-of-{ranks.size}.pt")
    torch.set_default_dtype(torch.float32)
