"""Peak memory of a training step, counted on the meta device: nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from volseg.config.schema import ModelConfig
from volseg.models.autocast import MetaAutocast
from volseg.models.build import build_empty
from volseg.models.contracts import NetworkPlan, SegmentationNetwork
from volseg.models.describe import checkpointed_layers, prepare_for_counting

FLOAT = 4  # bytes
Loss = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
"""Loss of logits ``(B, K, D, H, W)``, the coarser levels after the finest, and class indices ``(B, D, H, W)``."""


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Memory of a training step in bytes; Python, its libraries and the data loader's workers are not counted.

    Attributes:
        weights: Weights and their moving average.
        optimizer: The two moments of AdamW.
        activations: Peak of all other tensors: activations, gradients, loss and temporary tensors.
    """

    weights: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.optimizer + self.activations


def training_memory(
    model: ModelConfig,
    plan: NetworkPlan,
    batch_size: int,
    loss: Loss,
    *,
    device_type: str = "cpu",
    dtype: torch.dtype = torch.float32,
    accumulates: bool = False,
    replays: bool = False,
) -> TrainingMemory:
    """Count the memory of a training step of the network that a configuration describes.

    Forward pass, loss and backward pass run on the meta device, and every storage counts from its creation until it is
    freed. The work space of single kernels is not visible there.

    Args:
        model: The configuration; no weight file is read, and the attention kernel need not be installed.
        plan: The plan; its patch, classes and channels are used.
        batch_size: Patches per step.
        loss: The loss of the training.
        device_type: Device of the training; it need not be there.
        dtype: Precision of the network's multiplications.
        accumulates: Whether gradients of earlier batches live during the forward pass.
        replays: Whether the step is recorded and replayed: its memory is then its own, also while the average moves.

    Raises:
        ConfigError: The settings do not fit each other.
    """
    network = build_empty(replace(model, weights="random", attention="math"), plan)
    depth, height, width = plan.patch_size
    with torch.device("meta"):
        patches = torch.empty(batch_size, plan.num_channels, depth + 2 * network.halo, height, width)
        target = torch.empty(batch_size, depth, height, width, dtype=torch.int64)
    prepare_for_counting(network, model.attention)
    parameters = list(network.parameters())
    trained = FLOAT * sum(parameter.numel() for parameter in parameters if parameter.requires_grad)

    def precision() -> AbstractContextManager[object]:
        return MetaAutocast(device_type) if dtype == torch.bfloat16 else nullcontext()

    for layer in checkpointed_layers(network):
        layer.forward = within(precision, layer.forward)  # the backward pass runs it again, without the context
    forward, backward = step_peaks(network, patches, target, loss, precision)
    activations = max(forward + trained * accumulates, backward)
    if device_type != "cpu":  # the average moves by the differences of all weights at once there, beside the gradients
        activations = activations + trained if replays else max(activations, 2 * trained)
    return TrainingMemory(
        weights=2 * FLOAT * sum(parameter.numel() for parameter in parameters),
        optimizer=2 * trained,
        activations=activations,
    )


def step_peaks(
    network: SegmentationNetwork,
    patches: torch.Tensor,
    target: torch.Tensor,
    loss: Loss,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[int, int]:
    """Run a step and return the peak of the bytes of all tensors but weights: until the loss, and in the backward pass.

    Args:
        network: The network, on any device, without gradients; those of the backward pass count.
        patches: ``(B, C, D + 2 halo, H, W)``.
        target: Class indices ``(B, D, H, W)``.
        loss: The loss, which is computed in float32.
        precision: Returns the context of the forward pass.
    """
    with LivingStorages() as living:
        living.add(patches)
        living.add(target)
        with precision():
            outputs = network.train()(patches)
        outputs = [logits.float() for logits in outputs]
        value = loss(outputs, target)
        del outputs
        forward: int = living.peak
        living.peak = 0
        value.backward()  # type: ignore[no-untyped-call]
        backward: int = living.peak
    return forward, backward


def within(context: Callable[[], AbstractContextManager[object]], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs another one within a context of its own."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with context():
            return function(*args, **kwargs)

    return run


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
