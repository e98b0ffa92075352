"""Trainings in two processes, joined as those of ``torchrun`` are, and the same in one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

import volseg
from tests.made.datasets import write_dataset
from tests.made.plans import StubPlan
from volseg.config.load import load_config
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


def rank_1_gets(number: int, step: int) -> Callable[[str, int, int | None], None]:
    """Return a callback that sends a signal to rank 1 after a step."""

    def progress(stage: str, done: int, total: int | None) -> None:
        if os.environ["RANK"] == "1" and (stage, done) == ("train", step):
            os.kill(os.getpid(), number)

    return progress


def in_two_processes(work: Callable[[int, Path], None], folder: Path) -> list[int | None]:
    """Call a function of (rank, folder) in two processes; return their exit codes."""
    context = get_context("forkserver")  # it imports once for both
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=work, args=(rank, folder)) for rank in range(2)]
    ports = [str(port) for port in free_ports(4)]
    (folder / "ports").write_text("\n".join(ports))
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def free_ports(count: int) -> Sequence[int]:
    """Return ports of this machine that nobody listens to."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def work(rank: int, folder: Path) -> None:
    """Train one thing after the other in one of two processes, the last of which rank 1 does not survive."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ports = (folder / "ports").read_text().split()
    meet_at(ports[0])
    with joined_ranks(os.environ) as ranks:
        train_losses(ranks, folder)
    meet_at(ports[1])
    train_whole(folder, "two")
    meet_at(ports[2])
    try:
        train_whole(folder, "stopped", progress=rank_1_gets(signal.SIGTERM, 3))
    except SystemExit as stop:
        (folder / f"stopped-{rank}").write_text(str(stop.code))
    torch.distributed.destroy_process_group()
    meet_at(ports[3])
    try:
        train_whole(folder, "lost", progress=rank_1_gets(signal.SIGKILL, 3))
    except RankLostError as error:
        (folder / f"lost-{rank}").write_text(str(error))
    os._exit(0)


def meet_at(port: str) -> None:
    """Set the address at which the processes meet."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
