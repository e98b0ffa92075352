"""Trainings in two processes, joined as those of ``torchrun`` are, and the same in one."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

import volseg
from tests.made.datasets import write_dataset
from tests.made.plans import StubPlan
from volseg.cli.main import main
from volseg.config.load import load_config
from volseg.errors import DataError
from volseg.training.ranks import RankLostError, Ranks, joined_ranks
from volseg.training.samples import batches
from volseg.training.state import TrainingState

PLAN = StubPlan(patch_size=(4, 8, 8), token_stride=4, decoder_strides=((1, 1, 1), (2, 2, 2), (4, 4, 4)))
SMALL = ["device=cpu", "precision=32", "data.workers=0", "model.features=4", "model.max_features=8", "train.lr=1e-2"]
IDENTITY = ["model.encoder=identity", "train.batch_size=4"]
LOSSES = {
    "float32": (torch.float32, 20, IDENTITY),
    "float64": (torch.float64, 20, IDENTITY),
    "other": (
        torch.float64,
        4,
        ["model.encoder=tiny", "model.weights=random", "train.batch_size=2", "train.accumulate=2",
         "train.deep_supervision=false", "train.loss=dice_focal", "train.batch_dice=false",
         "train.class_weights=[1,2,3]"],
    ),
}  # fmt: skip
"""Name -> precision, steps and settings."""
WHOLE = ["plan.patch_size=[8,16,16]", "train.batch_size=2", "train.max_steps=6", "train.validate_every=3"]


class Samples(Dataset[dict[str, Any]]):
    """Sample ``i`` is drawn from the seed ``i``; a tenth of its voxels is ignored, in some samples nearly all."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        depth, height, width = PLAN.patch_size
        label = torch.randint(PLAN.num_classes, (depth, height, width), generator=generator)
        image = torch.randn(PLAN.num_channels, depth + 2, height, width, generator=generator)
        image[:, 1:-1] += label  # something to learn
        label[torch.rand(label.shape, generator=generator) < (0.95 if index % 3 == 0 else 0.1)] = -1
        return {"image": image, "label": label, "case": f"case{index}"}


def train_losses(ranks: Ranks, folder: Path) -> None:
    """Train with several losses; every process writes losses, gradient norms and weights."""
    for name, (dtype, steps, settings) in LOSSES.items():
        torch.set_default_dtype(dtype)
        config = load_config(None, [*SMALL, *settings, f"train.max_steps={steps}"])
        state = TrainingState(config, PLAN, ranks)
        stream = batches(Samples(), config, 0, ranks)
        outcomes = [state.step(next(stream), step, spent=step / steps) for step in range(steps)]
        result = {
            "loss": torch.stack([outcome.loss for outcome in outcomes]),
            "norm": torch.stack([outcome.gradient_norm for outcome in outcomes]),
            **{f"weights {key}": value for key, value in state.model.state_dict().items()},
            **{f"average {key}": value for key, value in state.average.model.state_dict().items()},
        }
        torch.save(result, folder / f"{name}-{ranks.rank}-of-{ranks.size}.pt")
    torch.set_default_dtype(torch.float32)


def make_data(folder: Path) -> Path:
    """Write a data set of 8 small cases, of which fold 0 holds out two."""
    rng = np.random.default_rng(0)
    labels = [np.zeros((16, 16 + number, 16), np.uint8) for number in range(8)]
    for label in labels:
        label[4:9, 5:11, 3:12] = 1
        label[10:14, 2:9, 6:13] = 2
    images = [label * 80.0 + rng.normal(0, 10, label.shape) for label in labels]
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    return write_dataset(folder, [image.astype(np.float32) for image in images], labels, affine=affine)


def train_whole(folder: Path, output: str, *settings: str, **options: Any) -> volseg.api.TrainingResult:
    """Train on the data set of a folder, predict and score."""
    common = [f"data.root={folder / 'data'}", f"output={folder / output}"]
    return volseg.train(None, [*SMALL, "model.encoder=identity", *WHOLE, *common, *settings], **options)


def rank_1(act: Callable[[], None]) -> Callable[[str, int, int | None], None]:
    """Return a callback that acts in rank 1 after the third step."""

    def progress(stage: str, done: int, total: int | None) -> None:
        if os.environ["RANK"] == "1" and (stage, done) == ("train", 3):
            act()

    return progress


def in_two_processes(work: Callable[[Path], None], folder: Path) -> list[int | None]:
    """Call a function of a module in two processes; return their exit codes."""
    context = get_context("forkserver")  # it imports once for all
    context.set_forkserver_preload([__name__])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [context.Process(target=_join, args=(work, rank, folder, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def _join(work: Callable[[Path], None], rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        work(folder)
    except RankLostError as error:
        (folder / f"lost-{rank}").write_text(str(error))
        sys.exit(2)


def train_losses_together(folder: Path) -> None:
    """Train with several losses."""
    with joined_ranks(os.environ) as ranks:
        train_losses(ranks, folder)


def train_and_stop(folder: Path) -> None:
    """Train a whole run, which a signal to rank 1 stops."""
    train_whole(folder, "stopped", progress=rank_1(lambda: os.kill(os.getpid(), signal.SIGTERM)))


def train_to_the_end(folder: Path) -> None:
    """Train a whole run, predict and score."""
    train_whole(folder, "two")


def train_misspelt(folder: Path) -> None:
    """Give the command a setting that does not exist."""
    refused(folder, "train.stepps=3")


def train_undivided(folder: Path) -> None:
    """Give the command a batch that the first process refuses."""
    refused(folder, "train.batch_size=3")


def refused(folder: Path, *settings: str) -> None:
    """Run the command; every process writes its exit code and what it says."""
    common = [f"data.root={folder / 'data'}", f"output={folder / 'refused'}", *SMALL, *WHOLE, "model.encoder=identity"]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["train", "--config", "demo", *common, *settings])
    (folder / f"said-{os.environ['RANK']}").write_text(f"{code} {said.getvalue().partition('error: ')[2]}")


def train_and_kill(folder: Path) -> None:
    """Train a run of which rank 1 is killed."""
    train_whole(folder, "killed", progress=rank_1(lambda: os.kill(os.getpid(), signal.SIGKILL)))


def fail() -> None:
    """Raise an error."""
    raise DataError("a sample is broken")


def train_and_fail(folder: Path) -> None:
    """Train a run of which rank 1 raises an error."""
    train_whole(folder, "failed", progress=rank_1(fail))
