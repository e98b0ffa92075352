"""Memory of a training step, measured in a process of its own: of one network, and against what volseg estimates."""

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
SETTINGS: dict[str, dict[str, Any]] = {
    "control, small patch": {"model": {"encoder": "identity"}, "patch": (40, 56, 40), "batch": 9},
    "control, 142 classes": {"model": {"encoder": "identity"}, "patch": (32, 64, 64), "batch": 1, "classes": 142},
    "tiny": {"model": {"encoder": "tiny"}, "patch": (32, 128, 128), "batch": 1},
    "tiny, bf16": {"model": {"encoder": "tiny"}, "patch": (32, 128, 128), "batch": 1, "precision": "bf16"},
    "ViT-S": {"model": {"encoder": "dinov2_s14"}, "patch": (32, 128, 128), "batch": 1},
    "ViT-S, frozen": {
        "model": {"encoder": "dinov2_s14", "adaptation": "frozen"},
        "patch": (32, 128, 128),
        "batch": 1,
    },
    "ViT-S, checkpointed": {
        "model": {"encoder": "dinov2_s14", "checkpoint_encoder": True},
        "patch": (32, 128, 128),
        "batch": 1,
    },
}


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


def compare(setting: str, heap: str) -> dict[str, Any]:
    """Return the estimate of a step, and by how much the resident memory of real steps exceeds that of the libraries.

    On a CPU that volseg does not train on in bf16, the refusal is lifted: memory is measured, not gradients.

    Args:
        setting: Key of `SETTINGS`.
        heap: ``reused``, as in ``volseg train``; or ``returned``, where each freed block of a megabyte goes back.
    """
    from volseg import device
    from volseg.config.schema import Config, TrainConfig
    from volseg.heap import return_freed_memory, reuse_freed_memory
    from volseg.training.memory import step_memory
    from volseg.training.state import TrainingState

    reuse_freed_memory()
    if heap == "returned":
        return_freed_memory()
    device.has_native_bf16 = lambda _: True

    def run(settings: dict[str, Any], steps: int) -> int:
        """Run some steps and return the estimate."""
        config = Config(
            device="cpu",
            precision=settings.get("precision", "32"),
            model=ModelConfig(weights="random", **settings["model"]),
            train=TrainConfig(max_steps=steps, batch_size=settings["batch"]),
        )
        count = settings.get("classes", 3)
        plan = Patch(settings["patch"], num_classes=count, class_names=tuple(map(str, range(count))))
        state = TrainingState(config, plan)
        depth, *plane = settings["patch"]
        for step in range(steps):
            image = torch.randn(settings["batch"], 1, depth + 2 * state.model.halo, *plane)
            label = torch.randint(count, (settings["batch"], depth, *plane))
            state.step([{"image": image, "label": label}], step, 0.5)
        return step_memory(config, plan, settings["batch"]).total

    torch.manual_seed(SEED)
    run(SETTINGS[setting] | {"patch": (8, 16, 16), "batch": 1, "model": {"encoder": "identity"}}, 1)  # libraries
    cost, estimate = cost_of(lambda: run(SETTINGS[setting], STEPS))
    return {
        "setting": setting,
        "heap": heap,
        "patch": SETTINGS[setting]["patch"],
        "batch": SETTINGS[setting]["batch"],
        "estimate_mb": round(estimate / 1e6),
        "libraries_mb": round(cost.before_bytes / 1e6),
        "measured_mb": round(cost.above_bytes / 1e6),
        "seconds": round(cost.seconds / STEPS, 2),
    }
