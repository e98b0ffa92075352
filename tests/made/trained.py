"""A tiny network trained for a few seconds on made scans, so that agreement of its masks means something.

The scans show three bright organs in a body in air; no flip or turn maps one scan onto itself. Their values are
multiples of 4 from -400 on, so that 8 bits under a scale hold them exactly. The plan has another spacing than the
scans along every axis, so that restoring interpolates, and windows smaller than the scan, so that they are blended.
Two numbers lie on an edge on purpose, where rounding could decide: slices are exactly 3 times as thick as the voxels
are wide, and 34 voxels of 1.2 mm are 25.5 of 1.6 mm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn

from volseg.config.schema import ModelConfig
from volseg.data.patches import sample_patch
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.io.model_file import save_model
from volseg.models.build import build_model
from volseg.planning.channel import ChannelIntensity
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import PreparedCase, class_indices, preprocess_image

LABELS = {"background": 0, "liver": 205, "kidney": 500, "spine": 600}
SHAPE, SPACING_MM = (40, 34, 14), (1.2, 1.2, 3.6)
LAS = np.array([[-1.2, 0, 0, 30.1], [0, 1.2, 0, -12.7], [0, 0, 3.6, 7.3], [0, 0, 0, 1]])
SLOPE, INTER = 4, -400
ORGANS = (  # label, value, centre and radii in mm, right-anterior-superior
    (205, 100.0, (9, 2, 2), (9, 10, 15)),
    (500, 180.0, (-10, 3, -5), (8, 7, 13)),
    (600, 260.0, (-1, -9, 1), (6, 5, 35)),
)
PLAN = Plan(
    dataset="Made",
    modality="ct",
    channels=("CT",),
    labels=LABELS,
    slice_axis="S",
    spacing_mm=(4.3, 1.6, 1.5),
    intensity=(ChannelIntensity(rule="ct", clip_low=-250.0, clip_high=350.0, mean=0.0, std=100.0),),
    crop_nonzero=False,
    patch_size=(8, 24, 32),
    token_stride=8,
    decoder_strides=((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)),
    mirror_axes=(0, 1),
    nearest_depth=False,
    rotate_in_plane_only=True,
)
MODEL: dict[str, Any] = {
    "encoder": "tiny",
    "weights": "random",
    "adaptation": "frozen",  # its random tokens are features enough here, and half of the time is saved
    "features": 4,
    "max_features": 32,
}
CASES, STEPS = 3, 150


def make_scan(index: int) -> tuple[NDArray[np.int16], NDArray[np.uint16], Grid]:
    """Values and labels ``(40, 34, 14)``, stored LAS as most CT is, and their grid. Cases 0 to 2 are trained on."""
    rng = np.random.default_rng([7, index])
    grid = Grid(SHAPE, LAS)
    voxels = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    mm = grid.to_mm(voxels) - grid.to_mm((np.array(SHAPE) - 1) / 2)

    def inside(centre: Any, radii: Any) -> NDArray[np.bool_]:
        return np.asarray((((mm - centre) / radii) ** 2).sum(axis=-1) <= 1)

    values = np.where(inside((0, 0, 0), (22, 18, 105)), 0.0, -300.0)
    labels = np.zeros(SHAPE, np.uint16)
    for label, value, centre, radii in ORGANS:
        organ = inside(centre + rng.uniform(-2, 2, 3), radii * rng.uniform(0.85, 1.15, 3))
        values[organ], labels[organ] = value, label
    stored = np.rint((values + rng.normal(0, 15, SHAPE) - INTER) / SLOPE).clip(0, 255)
    return (stored * SLOPE + INTER).astype(np.int16), labels, grid


def dice(mask: NDArray[Any], truth: NDArray[Any], label: int) -> float:
    """Of one label."""
    a, b = mask == label, truth == label
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def train(path: Path) -> None:
    """Train on the first scans and write a model file, the same one every time."""
    rng = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(ModelConfig(**MODEL), PLAN).train()
    cases = [_prepared(index) for index in range(CASES)]
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        image, label = sample_patch(cases[step % CASES], PLAN, rng, 0.9, halo=1)
        loss = _loss(network, torch.from_numpy(image)[None], torch.from_numpy(label[1:-1].astype(np.int64))[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    save_model(path, network.state_dict(), metadata(PLAN))


def metadata(plan: Plan) -> dict[str, Any]:
    return {"config": {"model": MODEL}, "plan": plan.to_dict(), "labels": plan.labels}


def _prepared(index: int) -> PreparedCase:
    values, labels, grid = make_scan(index)
    image, trace = preprocess_image(Volume(values[None], grid), PLAN)
    return PreparedCase(str(index), image.data, class_indices(trace.replay_labels(labels), PLAN), image.grid, trace)


def _loss(network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy and soft Dice, plain: MONAI's takes longer to import than the training lasts."""
    logits: Tensor = network(image)[0]  # (1, K, D, H, W)
    truth = F.one_hot(label, PLAN.num_classes).movedim(-1, 1)
    share = logits.softmax(dim=1)
    over = (0, 2, 3, 4)
    dice = (2 * (share * truth).sum(over) + 1) / ((share + truth).sum(over) + 1)
    return F.cross_entropy(logits, label, weight=torch.tensor([1.0, 2.0, 4.0, 4.0])) + 1 - dice[1:].mean()


def model_of_session(session_folder: Path) -> Path:
    """The model file in a folder that all processes of a test run share: the first to come trains, the others wait."""
    path = session_folder / "trained.safetensors"
    with FileLock(session_folder / "trained.lock"):
        if not path.exists():
            train(path)
    return path
