"""The optimizer: one fused kernel for many weights, which skips a step on the device when it is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from volseg.config.schema import TrainConfig

SKIPPING_DEVICES = ("cpu", "cuda")
"""Devices whose fused kernels read the flag of a step that is to be skipped."""
OF_THE_DEVICE = ("fused", "foreach", "capturable")
"""Settings of parameter groups that say how a device computes, not what."""


def build_optimizer(settings: TrainConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer of a configuration; SGD as in nnU-Net's ``configure_optimizers``.

    Args:
        settings: The configuration.
        groups: Parameter groups.
        device: Device of the parameters in training.
    """
    fused = device.type in SKIPPING_DEVICES
    if settings.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=0.99, nesterov=True, fused=fused)
        _start_momentum(optimizer)
        return optimizer
    return torch.optim.AdamW(groups, fused=fused)


def step_if(optimizer: torch.optim.Optimizer, is_finite: Tensor) -> None:
    """Step where a flag on the device is true; otherwise weights and state of the optimizer stay as they are.

    `torch.amp.GradScaler` sets the same attribute. The fused kernels of CPU and CUDA read it on the device; for any
    other device the flag is read here.
    """
    if all(group["fused"] for group in optimizer.param_groups):
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif is_finite:
        optimizer.step()


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimizer, which may be of another device; how this device computes is kept.

    Raises:
        ValueError: The state is of other parameters; `KeyError` or `TypeError`: it is none.
    """
    groups = [
        {**loaded, **{name: own[name] for name in OF_THE_DEVICE if name in own}}
        for loaded, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    if isinstance(optimizer, torch.optim.SGD):
        _start_momentum(optimizer)


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let every momentum start at 0: a first step that is skipped would leave memory that nothing was written to."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
