"""Networks with random weights, their plans, and volumes and model files for them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shared.record import RESULTS
from volseg.config.schema import Config, ModelConfig
from volseg.io.model_file import save_model
from volseg.models.build import build_model
from volseg.models.contracts import SegmentationNetwork
from volseg.planning.channel import ChannelIntensity
from volseg.planning.plan import Plan
from volseg.planning.rules import decoder_strides

SEED = 0
Size = tuple[int, int, int]


def plan_for(window: Size, token_stride: int, classes: int, spacing_mm: float = 1.0, clip_hu: float = 1000.0) -> Plan:
    """Return a plan for CT of cubic voxels with this window; decoder strides follow the planning rule."""
    strides = decoder_strides((spacing_mm,) * 3, window[0], token_stride, exact=True)
    return Plan(
        dataset="benchmark",
        modality="ct",
        channels=("CT",),
        labels={"background": 0} | {f"organ {number}": number for number in range(1, classes)},
        slice_axis="S",
        spacing_mm=(spacing_mm,) * 3,
        intensity=(ChannelIntensity(rule="ct", clip_low=-clip_hu, clip_high=clip_hu, mean=0.0, std=clip_hu / 2),),
        crop_nonzero=False,
        patch_size=window,
        token_stride=token_stride,
        decoder_strides=strides,
        mirror_axes=(0, 1, 2),
        nearest_depth=False,
        rotate_in_plane_only=False,
    )


def hippocampus_plan() -> Plan:
    """Return the plan of the Decathlon's hippocampus, from a run in ``results/``."""
    return Plan.load(RESULTS / "hippocampus" / "run_60min" / "plan.json")


def random_network(plan: Plan, **settings: Any) -> SegmentationNetwork:
    """Return a seeded network in eval mode; zero-initialised weights are filled with noise, so that they take part."""
    torch.manual_seed(SEED)
    model = build_model(ModelConfig(**{"weights": "random", **settings}), plan)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval()


def smooth_volume(shape: Size) -> NDArray[np.float32]:
    """Return ``(1, D, H, W)``: seeded structures of several voxels with some noise, of mean 0 and deviation 1."""
    noise = torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(SEED))
    coarse = torch.randn((1, 1, *(max(2, n // 12) for n in shape)), generator=torch.Generator().manual_seed(SEED + 1))
    volume = nn.functional.interpolate(coarse, size=shape, mode="trilinear") + 0.2 * noise
    return ((volume - volume.mean()) / volume.std())[0].numpy()


def model_file(path: Path, plan: Plan, encoder: str) -> Path:
    """Write a model file with random weights, as training does."""
    model = random_network(plan, encoder=encoder)
    config = Config(model=ModelConfig(encoder=encoder, weights="random"))
    metadata = {"config": asdict(config), "plan": plan.to_dict(), "labels": plan.labels}
    save_model(path, model.state_dict(), metadata)
    return path
