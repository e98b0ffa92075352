"""What the parts of a network cost, found out without computing anything: it is built and run on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from volseg.config.schema import ModelConfig
from volseg.models.attention import AttentionFunction, math
from volseg.models.build import build_model
from volseg.models.contracts import NetworkPlan, Stride
from volseg.models.decoders.unetr import UnetrDecoder
from volseg.models.encoders.dinov2 import DinoV2
from volseg.models.segmenter import Segmenter

Parts = Mapping[str, Sequence[nn.Module]]
"""Name -> the modules whose calls make up the part; what runs in a part within a part counts for the inner one."""


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Cost of one part of a network.

    Attributes:
        name: ``encoder``, ``aggregator``, ``stem``, ``decoder``; a baseline is one part, ``network``.
        parameters: Parameters.
        trainable: Those of them that are trained.
        macs: Multiply-accumulates of one patch in prediction: matrix products, convolutions and attention. Norms,
            activations, sums and interpolations are not counted.
        kept_bytes: What autograd keeps of one training batch for the backward pass, in float32; a storage that several
            parts keep counts for the first. The peak adds weights, gradients, the optimizer's state and the work space
            of single operations (with checkpointing: one block at a time).
        strides: Voxels per feature along D, H and W of each output.
    """

    name: str
    parameters: int
    trainable: int
    macs: int
    kept_bytes: int
    strides: tuple[Stride, ...]


def describe_model(model: ModelConfig, plan: NetworkPlan, batch_size: int) -> list[PartCost]:
    """Cost of each part of the network that a config describes, for the plan's patch.

    No weight file is read, and the attention kernel need not be installed.

    Args:
        model: The configuration.
        plan: Gives patch, classes and channels.
        batch_size: Patches of a training batch, for `PartCost.kept_bytes`.

    Raises:
        ConfigError: The settings do not fit each other.
    """
    with torch.device("meta"):
        network = build_model(replace(model, weights="random", attention="math"), plan)
    parts, strides = _parts(network)
    depth, height, width = plan.patch_size
    halo = int(getattr(network, "halo", 0))
    patches = torch.empty(batch_size, plan.num_channels, depth + 2 * halo, height, width, device="meta")
    macs = _count_macs(network, parts, patches[:1])
    _set_attention(network, math if model.attention == "math" else _FusedAttention.apply)
    _keep_channels_last(network)
    kept = kept_bytes(network, parts, lambda: network.train()(patches))
    sizes = _count_parameters(parts)
    return [
        PartCost(
            name=name,
            parameters=sizes[name][0],
            trainable=sizes[name][1],
            macs=macs.get(name, 0),
            kept_bytes=kept.get(name, 0),
            strides=strides[name],
        )
        for name in parts
    ]


def kept_bytes(network: nn.Module, parts: Parts, run: Callable[[], object]) -> dict[str, int]:
    """Bytes that autograd keeps of a run, by part; every storage once, parameters and buffers not at all.

    Args:
        network: The network.
        parts: Its parts.
        run: Calls the network, or pieces of it, with gradients enabled.
    """
    running: list[str] = []
    own = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.Tensor] = {}  # held, so that no address is used twice
    sums: dict[str, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in own and _storage(tensor) not in kept:
            kept[_storage(tensor)] = tensor
            part = running[-1] if running else "other"
            sums[part] = sums.get(part, 0) + tensor.untyped_storage().nbytes()
        return tensor

    def keep_input(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Checkpointing keeps the inputs of its blocks without telling the hooks."""
        keep(inputs[0])

    blocks = [b for m in network.modules() if isinstance(m, DinoV2) and m.checkpoint_blocks for b in m.blocks]
    handles = [block.register_forward_pre_hook(keep_input) for block in blocks]
    try:
        with _watch(parts, running), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _count_macs(network: nn.Module, parts: Parts, patch: torch.Tensor) -> dict[str, int]:
    """Multiply-accumulates of each part."""
    running, sums, before = list[str](), dict[str, int](), 0

    def settle() -> None:
        """Credit what was counted since the last change of part."""
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
    """Keep the names of the parts that run, the innermost last; ``on_change`` is called just before each change."""

    def enter(name: str, *_: object) -> None:
        on_change()
        running.append(name)

    def leave(*_: object) -> None:
        on_change()
        running.pop()

    handles = []
    for name, modules in parts.items():
        for module in modules:
            handles += [module.register_forward_pre_hook(partial(enter, name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(network: nn.Module) -> tuple[Parts, dict[str, tuple[Stride, ...]]]:
    """The parts, inner ones first, and the strides of their outputs."""
    if not isinstance(network, Segmenter):
        return {"network": [network]}, {"network": ((1, 1, 1), *network.deep_strides)}  # type: ignore[misc]
    parts: dict[str, list[nn.Module]] = {}
    strides: dict[str, tuple[Stride, ...]] = {}
    if network.encoder is not None:
        parts |= {"encoder": [network.encoder], "aggregator": [network.aggregator]}
        strides |= dict.fromkeys(parts, network.encoder.spec.strides)
    decoder = network.decoder
    outputs: tuple[Stride, ...] = ((1, 1, 1), *decoder.deep_strides)
    if isinstance(decoder, UnetrDecoder) and len(decoder.stem):
        parts["stem"] = [block for stage in decoder.stem for block in stage]  # type: ignore[attr-defined]
        strides["stem"] = (*outputs, decoder.multiple)
    parts["decoder"], strides["decoder"] = [decoder], outputs  # type: ignore[list-item]
    return parts, strides


def _count_parameters(parts: Parts) -> dict[str, tuple[int, int]]:
    """All and trainable parameters; each counts for the first part that has it."""
    counted: set[nn.Parameter] = set()
    sizes = {}
    for name, modules in parts.items():
        own = {p for module in modules for p in module.parameters()} - counted
        counted |= own
        sizes[name] = (sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))
    return sizes


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused kernels keep: their inputs, the result and a sum for each query; never a score matrix."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mixed, torch.empty_like(query[..., 0], dtype=torch.float32))
        return mixed


def _set_attention(network: nn.Module, attend: AttentionFunction) -> None:
    for module in network.modules():
        if hasattr(module, "attend"):
            setattr(module, "attend", attend)  # noqa: B010 (an attribute that mypy cannot know)


def _keep_channels_last(network: nn.Module) -> None:
    """On the meta device 3D convolutions and norms forget this format; the copies that follow would be counted."""
    last = torch.channels_last_3d
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.GroupNorm):
            module.register_forward_hook(
                lambda _, inputs, output: output.contiguous(memory_format=last) if _is_last(inputs[0]) else output
            )


def _is_last(x: torch.Tensor) -> bool:
    """Channels lie side by side; a single channel is contiguous in both formats, so the strides decide."""
    return x.ndim == 5 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)


def _storage(tensor: torch.Tensor) -> int:
    """What tells storages apart; on the meta device none has an address."""
    return int(tensor.untyped_storage()._cdata)
