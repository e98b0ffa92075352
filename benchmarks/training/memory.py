"""Memory of a training step of one network, measured in a process of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.measure import cost_of
from training.patch import Patch
from volseg.config.schema import ModelConfig
from volseg.models.build import build_model, count_parameters
from volseg.models.describe import describe_model

MODES: dict[str, dict[str, Any]] = {
    "full": {"adaptation": "full"},
    "full, checkpointed": {"adaptation": "full", "checkpoint_encoder": True},
    "frozen": {"adaptation": "frozen"},
}
SEED = 0
STEPS = 2


def measure(encoder: str, plane: int, mode: str, depth: int) -> dict[str, Any]:
    """Return by how much the resident memory rises over training steps of one patch of noise.

    Args:
        encoder: ``model.encoder``.
        plane: Voxels along the sides of a slice.
        mode: Key of `MODES`.
        depth: Slices of the patch.
    """
    torch.manual_seed(SEED)
    config, plan = ModelConfig(encoder=encoder, weights="random", **MODES[mode]), Patch((depth, plane, plane))
    kept = sum(part.kept_bytes for part in describe_model(config, plan, batch_size=1))
    model = build_model(config, plan).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    image, label = torch.randn(1, 1, depth + 2 * model.halo, plane, plane), torch.randint(3, (1, depth, plane, plane))
    # A small step first: libraries and the optimizer's state are not counted.
    train_step(model, optimizer, image[..., :16, :16], label[..., :16, :16])
    cost, _ = cost_of(lambda: [train_step(model, optimizer, image, label) for _ in range(STEPS)])
    return {
        "mode": mode,
        "depth": depth,
        "parameters": count_parameters(model),
        "step_mb": round(cost.above_bytes / 1e6),
        "before_mb": round(cost.before_bytes / 1e6),
        "kept_estimate_mb": round(kept / 1e6),
        "seconds": round(cost.seconds / STEPS, 2),
    }


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, label: Tensor) -> None:
    """Run one step: cross-entropy on every level, backward, optimizer."""
    loss = torch.zeros(())
    for logits in model(image):
        target = F.interpolate(label[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0].long()
        loss = loss + F.cross_entropy(logits, target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
