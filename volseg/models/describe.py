"""Cost of the parts of a network, counted on the meta device: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from volseg.config.levels import Stride
from volseg.config.schema import ModelConfig
from volseg.models.attention import AttentionFunction, AttentionLayer, reference_attention
from volseg.models.build import build_empty
from volseg.models.contracts import ImageEncoder, NetworkPlan, Part

Parts = Mapping[str, Part]
"""Parts by name; a part within a part counts for the inner one."""


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Cost of one part of a network.

    Attributes:
        name: ``encoder``, ``aggregator``, ``stem``, ``decoder``; a baseline is one part, ``network``.
        parameters: Number of parameters.
        trainable: Number of parameters that are trained.
        macs: Multiply-accumulates of one patch in prediction: matrix products, convolutions and attention. Norms,
            activations, sums and interpolations are not counted.
        kept_bytes: Bytes of one training batch that autograd keeps for the backward pass, in float32; a storage that
            several parts keep counts for the first. The peak adds weights, gradients, the optimizer's state and the
            workspace of single operations (with checkpointing: one layer at a time).
        strides: Voxels per feature along D, H and W of each output.
    """

    name: str
    parameters: int
    trainable: int
    macs: int
    kept_bytes: int
    strides: tuple[Stride, ...]


def describe_model(model: ModelConfig, plan: NetworkPlan, batch_size: int) -> list[PartCost]:
    """Count the cost of each part of the network that a configuration describes, for the plan's patch.

    No weight file is read, and the attention kernel need not be installed.

    Args:
        model: The configuration.
        plan: The plan; its patch, classes and channels are used.
        batch_size: Patches per training batch, for `PartCost.kept_bytes`.

    Raises:
        ConfigError: The settings do not fit each other.
    """
    network = build_empty(replace(model, weights="random", attention="math"), plan)
    parts = network.parts()
    depth, height, width = plan.patch_size
    patches = torch.empty(batch_size, plan.num_channels, depth + 2 * network.halo, height, width, device="meta")
    macs = _count_macs(network, parts, patches[:1])
    prepare_for_counting(network, model.attention)
    kept = kept_bytes(network, parts, lambda: network.train()(patches))
    sizes = _count_parameters(parts)
    return [
        PartCost(
            name=name,
            parameters=sizes[name][0],
            trainable=sizes[name][1],
            macs=macs.get(name, 0),
            kept_bytes=kept.get(name, 0),
            strides=parts[name].strides,
        )
        for name in parts
    ]


def prepare_for_counting(network: nn.Module, attention: str) -> None:
    """Let a network on the meta device keep what the real one keeps.

    Args:
        network: A network with the attention kernel ``math``.
        attention: The kernel to count.
    """
    _set_attention(network, reference_attention if attention == "math" else _FusedAttention.apply)
    _keep_channels_last(network)


def checkpointed_layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers that the backward pass runs again."""
    encoders = [m for m in network.modules() if isinstance(m, ImageEncoder) and m.checkpoint_layers]
    return [layer for encoder in encoders for layer in encoder.layers]


def kept_bytes(network: nn.Module, parts: Parts, run: Callable[[], object]) -> dict[str, int]:
    """Count the bytes that autograd keeps of a run, by part: every storage once, without parameters and buffers.

    Args:
        network: The network.
        parts: Its parts.
        run: Calls the network, or parts of it, with gradients enabled.
    """
    running: list[str] = []
    own = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.Tensor] = {}  # referenced, so that no address is reused
    sums: dict[str, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in own and _storage(tensor) not in kept:
            kept[_storage(tensor)] = tensor
            part = running[-1] if running else "other"
            sums[part] = sums.get(part, 0) + tensor.untyped_storage().nbytes()
        return tensor

    def keep_input(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Count the input of a checkpointed layer, which the hooks on saved tensors do not report."""
        keep(inputs[0])

    handles = [layer.register_forward_pre_hook(keep_input) for layer in checkpointed_layers(network)]
    try:
        with _watch(parts, running), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _count_macs(network: nn.Module, parts: Parts, patch: torch.Tensor) -> dict[str, int]:
    """Count the multiply-accumulates of each part."""
    running, sums, before = list[str](), dict[str, int](), 0

    def settle() -> None:
        """Add the operations since the last change of part to the part that ran."""
        nonlocal before
        part, now = running[-1] if running else "other", counter.get_total_flops()
        sums[part] = sums.get(part, 0) + now - before
        before = now

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), _watch(parts, running, settle):
        network.eval()(patch)
    return {name: flops // 2 for name, flops in sums.items()}


@contextmanager
def _watch(parts: Parts, running: list[str], on_change: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Record the names of the parts that run, the innermost last; ``on_change`` is called just before each change."""

    def enter(name: str, *_: object) -> None:
        on_change()
        running.append(name)

    def leave(*_: object) -> None:
        on_change()
        running.pop()

    handles = []
    for name, part in parts.items():
        for module in part.modules:
            handles += [module.register_forward_pre_hook(partial(enter, name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _count_parameters(parts: Parts) -> dict[str, tuple[int, int]]:
    """Count all and trainable parameters of each part; a shared one counts for the first part that has it."""
    counted: set[nn.Parameter] = set()
    sizes = {}
    for name, part in parts.items():
        own = {p for module in part.modules for p in module.parameters()} - counted
        counted |= own
        sizes[name] = (sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))
    return sizes


class _FusedAttention(torch.autograd.Function):
    """Save what fused kernels save: their inputs, the result and one sum per query, but no matrix of scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mixed, torch.empty_like(query[..., 0], dtype=torch.float32))
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _set_attention(network: nn.Module, attend: AttentionFunction) -> None:
    for module in network.modules():
        if isinstance(module, AttentionLayer):
            module.attend = attend


def _keep_channels_last(network: nn.Module) -> None:
    """Keep the format that 3D convolutions and norms lose on the meta device; later copies would be counted."""
    last = torch.channels_last_3d
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.GroupNorm):
            module.register_forward_hook(
                lambda _, inputs, output: output.contiguous(memory_format=last) if _is_last(inputs[0]) else output
            )


def _is_last(x: torch.Tensor) -> bool:
    """Return whether channels lie side by side; one channel is contiguous in both formats, so strides decide."""
    return x.ndim == 5 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)


def _storage(tensor: torch.Tensor) -> int:
    """Return an identifier of a tensor's storage; on the meta device it has no address."""
    return int(tensor.untyped_storage()._cdata)
