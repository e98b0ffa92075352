"""Peak memory of a training step, counted on the meta device: nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from volseg.config.schema import ModelConfig
from volseg.models.build import build_model
from volseg.models.contracts import NetworkPlan, SegmentationNetwork
from volseg.models.describe import prepare_for_counting

FLOAT = 4  # bytes
Loss = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
"""Loss of logits ``(B, K, D, H, W)``, the coarser levels after the finest, and class indices ``(B, D, H, W)``."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Memory of a training step in float32, in bytes; Python, its libraries and the data loader are not counted.

    Attributes:
        weights: Weights and their moving average.
        optimizer: Gradients and the two moments of AdamW.
        activations: Peak of all other tensors during forward pass, loss and backward pass.
    """

    weights: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.optimizer + self.activations


def training_memory(model: ModelConfig, plan: NetworkPlan, batch_size: int, loss: Loss) -> TrainingMemory:
    """Count the memory of a training step of the network that a configuration describes.

    Forward pass, loss and backward pass run on the meta device, and every storage counts from its creation until it is
    freed. The work space of single kernels is not visible there.

    Args:
        model: The configuration; no weight file is read, and the attention kernel need not be installed.
        plan: The plan; its patch, classes and channels are used.
        batch_size: Patches per step.
        loss: The loss of the training.

    Raises:
        ConfigError: The settings do not fit each other.
    """
    with torch.device("meta"):
        network = build_model(replace(model, weights="random", attention="math"), plan)
        depth, height, width = plan.patch_size
        patches = torch.empty(batch_size, plan.num_channels, depth + 2 * network.halo, height, width)
        target = torch.empty(batch_size, depth, height, width, dtype=torch.int64)
    prepare_for_counting(network, model.attention)
    parameters = list(network.parameters())
    return TrainingMemory(
        weights=2 * FLOAT * sum(parameter.numel() for parameter in parameters),
        optimizer=3 * FLOAT * sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        activations=step_peak(network, patches, target, loss),
    )


def step_peak(network: SegmentationNetwork, patches: torch.Tensor, target: torch.Tensor, loss: Loss) -> int:
    """Run a step and return the peak of the bytes of all tensors but weights and gradients.

    The gradients of the step before live until the backward pass begins, which makes its own.

    Args:
        network: The network, on any device, without gradients.
        patches: ``(B, C, D + 2 halo, H, W)``.
        target: Class indices ``(B, D, H, W)``.
        loss: The loss.
    """
    gradients = FLOAT * sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    with LivingStorages() as living:
        living.add(patches)
        living.add(target)
        value = loss(network.train()(patches), target)
        forward: int = living.peak
        living.peak = 0
        value.backward()  # type: ignore[no-untyped-call]
    backward: int = living.peak - gradients
    return max(forward, backward)


class LivingStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations create while it is active.

    Attributes:
        now: Bytes that are not yet freed.
        peak: Largest value of `now`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}  # of living storages

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result
