"""Exponential moving average of the weights, which is validated and saved."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from volseg.models.contracts import SegmentationNetwork


class WeightAverage:
    """A copy of the model with the exponential moving average of its weights.

    The decay rises as ``(1 + n) / (10 + n)`` up to its final value, so that the first, random weights are forgotten
    within a few steps. The number n of updates is counted on the device, because it does not count skipped steps.

    Args:
        model: The model, on its device.
        decay: Final decay.

    Attributes:
        model: The averaged model, in ``eval`` mode.
    """

    def __init__(self, model: SegmentationNetwork, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._averaged: list[Tensor] = [average for average, trained in pairs if trained.requires_grad]
        self._trained: list[Tensor] = [trained for _, trained in pairs if trained.requires_grad]
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))
        self._count = count_on(pairs[0][0].device)

    @property
    def updates(self) -> int:
        """Number of updates. Reading it waits for the device."""
        return int(self._count)

    @updates.setter
    def updates(self, number: int) -> None:
        self._count.fill_(number)

    @torch.no_grad()
    def update(self, is_finite: Tensor) -> None:
        """Update the average with the weights of the model and copy its buffers, if a flag on the device is true.

        Otherwise the buffers of the model, such as means of batch norms, return to those before the step.
        """
        self._count += is_finite
        decay = ((1 + self._count) / (10 + self._count)).clamp(max=self.decay)
        move(self._averaged, self._trained, (1 - decay) * is_finite)
        for average, trained in self._buffers:
            average.copy_(torch.where(is_finite, trained, average))
            trained.copy_(average)


def count_on(device: torch.device) -> Tensor:
    """Return a count of 0 on a device: exact for any number of steps, as float64 where the device has it."""
    return torch.zeros((), device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)


@torch.no_grad()
def move(averaged: list[Tensor], current: list[Tensor], weight: Tensor) -> None:
    """Move all tensors towards others: by 0 they stay, by 1 they are equal.

    Args:
        averaged: Tensors that are changed.
        current: Tensors of the same shapes.
        weight: Scalar on their device, 0 to 1.
    """
    if weight.device.type == "cpu":
        torch._foreach_lerp_(averaged, current, weight.item())
    else:
        move_by_tensor(averaged, current, weight)


@torch.no_grad()
def move_by_tensor(averaged: list[Tensor], current: list[Tensor], weight: Tensor) -> None:
    """Move all tensors without reading the weight; torch's lerp for lists takes one weight for all as a number only."""
    differences = torch._foreach_sub(current, averaged)
    torch._foreach_mul_(differences, weight.to(differences[0].dtype))
    torch._foreach_add_(averaged, differences)
