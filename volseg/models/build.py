"""Build networks: the only place where a configuration becomes modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError
from volseg.models.adapt import adapt
from volseg.models.aggregate import DepthAttention, DepthConv, NoAggregator
from volseg.models.attention import attention_function, try_attention
from volseg.models.contracts import Decoder, FeatureSpec, ImageEncoder, NetworkPlan, SegmentationNetwork
from volseg.models.decoders.per_slice import LinearDecoder, UnetDecoder2d
from volseg.models.decoders.unetr import UnetrDecoder
from volseg.models.encoders.slices import SliceEncoder, slice_channels
from volseg.models.lora import is_lora
from volseg.models.segmenter import Segmenter
from volseg.models.start import check_size, load_start, weight_file

TAPS = {"unetr": 4, "linear": 1, "unet2d": 5}
"""Number of encoder layers that each decoder taps."""


def build_model(
    model: ModelConfig,
    plan: NetworkPlan,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    read_weights: bool = True,
) -> SegmentationNetwork:
    """Build the network that a configuration describes, for the data that a plan describes.

    Args:
        model: The configuration.
        plan: The plan.
        device: Where the network will run. The attention kernel is tried there before any weights are read; ``None``
            skips this. The network itself is built on the default device.
        dtype: Precision in which the network will run.
        read_weights: Load the initial weights; not needed if a checkpoint is loaded afterwards.

    Raises:
        ConfigError: The settings do not fit each other, or the attention kernel does not run on the device.
        ModelFileError: The weight file is missing or does not fit.
    """
    if device is not None:
        check_attention(model, device, dtype)
    start = weight_file(model) if read_weights else None
    if start is not None:
        check_size(start, expected_state(model, plan))
    if model.baseline is not None:
        from volseg.models.baselines import build_baseline

        return build_baseline(model.baseline, plan, halo=(model.adjacent_slices - 1) // 2)
    seed = int(torch.randint(2**31, (), device="cpu"))
    with _own_random_state(seed):
        encoder = _build_encoder(model, plan)
    with _own_random_state(seed + 1):
        decoder = _build_decoder(model, plan, encoder.spec if encoder is not None else FeatureSpec())
    with _own_random_state(seed + 2):
        aggregator = _build_aggregator(model, encoder)
    network = Segmenter(encoder, aggregator, decoder, plan.spacing_mm, model.adjacent_slices)
    network.pretrained = model.weights not in (None, "random")
    if start is not None:
        network.start = load_start(network, start, model, plan).to_dict()
    if encoder is not None:
        adapt(encoder, model)  # last, because weight files have the keys of an encoder that is not adapted
    return network


def build_empty(model: ModelConfig, plan: NetworkPlan) -> SegmentationNetwork:
    """Build the network without values (on the meta device), whatever its size, in milliseconds.

    The random state does not change.

    Raises:
        ConfigError: The settings do not fit each other.
        RuntimeError: A size is beyond 64 bits.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"), Undrawn():
        return build_model(model, plan, read_weights=False)


def expected_state(model: ModelConfig, plan: NetworkPlan) -> dict[str, torch.Tensor]:
    """Return the state dict of `build_empty`, with its errors."""
    state: dict[str, torch.Tensor] = build_empty(model, plan).state_dict()
    return state


class Undrawn(TorchFunctionMode):
    """Leave out random numbers: drawing them on the meta device imports torch's compiler, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Draw the weights of a part from its own seed, so that they do not depend on the other parts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def for_prediction(model: ModelConfig) -> ModelConfig:
    """Return the configuration of the network in a model file.

    LoRA is merged into the encoder's weights, as in `volseg.models.lora.merged_state`. The attention kernel is one that
    runs on every device, with the same result: a model trained with xFormers on a GPU must open on a laptop.
    """
    return replace(
        model,
        adaptation="full" if model.adaptation == "lora" else model.adaptation,
        attention="sdpa" if model.attention == "xformers" else model.attention,
    )


def check_attention(model: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> None:
    """Try the attention kernel of a configuration where it will run; a network without an encoder has none.

    Raises:
        ConfigError: The kernel does not run there.
    """
    if model.baseline is None and model.encoder != "identity":
        try_attention(model.attention, CATALOGUE[model.encoder].head_size, device, dtype)


def _build_encoder(model: ModelConfig, plan: NetworkPlan) -> SliceEncoder | None:
    if model.encoder == "identity":
        return None
    return build_slice_encoder(model, plan.num_channels, token_stride(model, plan), TAPS[model.decoder])


def build_slice_encoder(model: ModelConfig, image_channels: int, stride: int, taps: int) -> SliceEncoder:
    """Build the encoder of a configuration alone, with random weights.

    Args:
        model: The configuration; its encoder is one of the catalogue.
        image_channels: Modalities.
        stride: Voxels per token in plane.
        taps: Number of layers that are tapped.

    Raises:
        ConfigError: A tap would be finer than a voxel.
    """
    entry = CATALOGUE[model.encoder]
    channels = slice_channels(image_channels, model.adjacent_slices)
    attend = attention_function(model.attention)
    vit: ImageEncoder = import_module(entry.module).build(entry, channels, attend=attend, drop_path=model.drop_path)
    vit.checkpoint_layers = model.checkpoint_encoder
    return SliceEncoder(vit, stride, model.adjacent_slices, taps)


def token_stride(model: ModelConfig, plan: NetworkPlan) -> int:
    """Return the voxels per token in plane: the plan's, or those that ``model.encoder_scale`` gives.

    Raises:
        ConfigError: The decoder has no level of this stride.
    """
    patch = CATALOGUE[model.encoder].patch
    stride = plan.token_stride if model.encoder_scale is None else patch / model.encoder_scale
    levels = [level[1] for level in plan.decoder_strides[1:]]
    if (model.decoder != "unetr" and model.encoder_scale is None) or stride in levels:
        return int(stride)
    if model.encoder_scale is None:
        raise ConfigError(
            "a decoder level must have the encoder's token stride in plane",
            found=f"decoder_strides {plan.decoder_strides}, token_stride {plan.token_stride}",
            hint="set plan.decoder_strides and plan.token_stride together",
        )
    raise ConfigError(
        "model.encoder_scale gives tokens that fit no level of the decoder",
        found=f"{patch} pixels per token / {model.encoder_scale:g} = {stride:g} voxels per token",
        expected=f"{', '.join(map(str, levels))} voxels per token",
        hint=f"set model.encoder_scale to one of {', '.join(f'{patch / level:g}' for level in levels)}",
    )


def _build_aggregator(model: ModelConfig, encoder: SliceEncoder | None) -> nn.Module:
    if encoder is None or model.aggregator == "none":
        return NoAggregator(encoder.spec if encoder is not None else FeatureSpec())
    if model.aggregator == "conv":
        return DepthConv(encoder.spec)
    return DepthAttention(encoder.spec, CATALOGUE[model.encoder].heads, attention_function(model.attention))


def _build_decoder(model: ModelConfig, plan: NetworkPlan, taps: FeatureSpec) -> Decoder:
    if model.decoder == "linear":
        return LinearDecoder(num_classes=plan.num_classes, taps=taps)
    if model.decoder == "unet2d":
        return UnetDecoder2d(num_classes=plan.num_classes, taps=taps)
    return UnetrDecoder(
        image_channels=plan.num_channels,
        num_classes=plan.num_classes,
        strides=plan.decoder_strides,
        spacing_mm=plan.spacing_mm,
        taps=taps,
        features=model.features,
        max_features=model.max_features,
        stem=model.stem,
    )


def parameter_groups(
    model: SegmentationNetwork,
    *,
    lr: float,
    encoder_lr_scale: float = 1.0,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Return parameter groups for AdamW.

    Norms, biases, LayerScale and the encoder's learned positions and tokens have no weight decay. The weights of a
    pretrained encoder learn at ``lr * encoder_lr_scale * layer_decay ** (layers above)``. All that starts from random
    weights learns at ``lr``: the rest of the network, an encoder that is not pretrained, and LoRA's matrices.

    Args:
        model: A network from `build_model`.
        lr: Learning rate of stem, aggregator and decoder.
        encoder_lr_scale: The pretrained encoder's learning rate as a fraction of ``lr``.
        layer_decay: Its learning rate in a layer as a fraction of that in the layer above; 1 is off.
        weight_decay: Decay of the other weights.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``, without empty groups and frozen parameters.

    Source: layer-wise decay, Clark et al. 2020, "ELECTRA", appendix A; layers as in Bao et al. 2021, "BEiT".
    """
    encoder = model.encoder
    undecayed = encoder.undecayed if encoder is not None else ()
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, rate = ("encoder" if name.startswith("encoder.") else "network"), lr
        if part == "encoder" and is_lora(name):
            part = "lora"
        elif encoder is not None and model.pretrained and part == "encoder":
            above = encoder.layers_above(name.removeprefix("encoder."))
            rate = lr * encoder_lr_scale * layer_decay**above
            part = part if layer_decay == 1 else f"encoder, {above} layers below its end"
        decays = parameter.ndim > 1 and not name.endswith(undecayed)
        key = f"{part}, {'decay' if decays else 'no decay'}"
        new = {"name": key, "params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault(key, new)["params"].append(parameter)
    return list(groups.values())


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """Count the parameters of a network, shared ones once.

    Returns:
        ``{"total": ..., "trainable": ..., "parts": {"encoder": {"total": ..., "trainable": ...}, ...}}``; the parts are
        the network's direct children that have parameters.
    """
    parts = {name: _count(child) for name, child in model.named_children()}
    return {**_count(model), "parts": {name: counts for name, counts in parts.items() if counts["total"]}}


def _count(module: nn.Module) -> dict[str, int]:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return {"total": sum(size for size, _ in sizes), "trainable": sum(size for size, trained in sizes if trained)}
