"""Exponential moving average of the weights, which is validated and saved."""

from __future__ import annotations

import copy

import torch
from torch import nn

from volseg.models.contracts import SegmentationNetwork


class WeightAverage:
    """A copy of the model with the exponential moving average of its weights.

    The decay rises as ``(1 + n) / (10 + n)`` up to its final value, so that the first, random weights are forgotten
    within a few steps.

    Attributes:
        model: The averaged model, in ``eval`` mode.
        updates: Number of updates.
    """

    def __init__(self, model: SegmentationNetwork, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of ``model``; buffers are copied."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged, current = list(self.model.parameters()), list(model.parameters())
        trained = [i for i, parameter in enumerate(current) if parameter.requires_grad]
        torch._foreach_lerp_([averaged[i] for i in trained], [current[i] for i in trained], weight)
        for target, source in zip(self.model.buffers(), model.buffers(), strict=True):
            target.copy_(source)
