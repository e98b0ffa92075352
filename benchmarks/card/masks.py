"""The same scan predicted on the CPU and on the device: logits, masks, and what bf16 changes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from card.device import PRECISIONS, precisions
from card.made import write_dataset
from prediction.networks import hippocampus_plan, random_network
from prediction.windows import difference
from shared.record import Record
from volseg.geometry.volume import Volume
from volseg.inference.ensemble import Network, read_network
from volseg.inference.predictor import Predictor
from volseg.inference.sliding.stream import predict_logits
from volseg.io.datasets import read_dataset
from volseg.io.volumes import read_channels
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import preprocess_image

ENCODERS = {"full": ("dinov2_s14", "identity"), "quick": ("dinov2_s14",), "tiny": ("tiny",)}
TRAINED = "volseg/fold0_seed0/model.safetensors"


def rows(device: str, size: str, data: str | None, runs: str) -> Iterator[Record]:
    """Yield rows for networks with random weights, and for the one that `card.accuracy` has trained, if it has."""
    with tempfile.TemporaryDirectory() as folder:
        case = read_dataset(data or write_dataset(Path(folder), 1)).cases[0]
        volume = read_channels(case.images)
        for encoder in ENCODERS[size]:
            plan = hippocampus_plan()
            yield from compare(f"{encoder}, random", random_network(plan, encoder=encoder), plan, volume, device)
        if (model := Path(runs) / TRAINED).exists():
            trained = read_network(model, torch.device("cpu"), torch.float32)
            yield from compare("tiny, trained", trained.model, trained.plan, volume, device)


def compare(name: str, network: SegmentationNetwork, plan: Plan, volume: Volume, device: str) -> Iterator[Record]:
    """Yield the device in float32 beside the CPU in float32, and bf16 beside float32 on the device."""
    on_cpu = outcome(network, plan, volume, "cpu", "float32")
    on_device = outcome(network, plan, volume, device, "float32")
    yield {"network": name, "compared": "device, CPU in float32", **agreement(on_device, on_cpu, plan)}
    if "bf16" in precisions(device):
        reduced = outcome(network, plan, volume, device, "bf16")
        yield {"network": name, "compared": "bf16, float32 on the device", **agreement(reduced, on_device, plan)}


def outcome(
    network: SegmentationNetwork, plan: Plan, volume: Volume, device: str, precision: str
) -> tuple[Tensor, NDArray[np.integer]]:
    """Return the logits (K, D, H, W) on the plan's grid, and the mask on the scan's grid by the whole prediction."""
    network.to(device)
    image = preprocess_image(volume, plan)[0].data
    autocast = None if precision == "float32" else PRECISIONS[precision]
    logits = predict_logits(network, image, plan, device=device, autocast=autocast)
    predictor = Predictor([Network(network, plan)], device=device, precision=precision.replace("float", ""))
    return logits, predictor.segment(volume).mask.labels


def agreement(
    ours: tuple[Tensor, NDArray[np.integer]], reference: tuple[Tensor, NDArray[np.integer]], plan: Plan
) -> Record:
    """Return the largest difference of the logits, the share of equal voxels of the masks, and Dice per class."""
    dice = {}
    for name, value in plan.labels.items():
        one, other = ours[1] == value, reference[1] == value
        voxels = int(one.sum() + other.sum())
        if value:
            dice[name] = round(2 * float((one & other).sum()) / voxels, 6) if voxels else None
    return {
        "max_difference": difference(ours[0], reference[0])["max_difference"],
        "largest_logit": float(torch.stack([logits.abs().max() for logits in (ours[0], reference[0])]).max()),
        "equal_voxels": float((ours[1] == reference[1]).mean()),
        "voxels": int(ours[1].size),
        "dice": dice,
    }
