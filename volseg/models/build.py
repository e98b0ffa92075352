"""The only place where a config becomes modules."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError
from volseg.models.adapt import adapt
from volseg.models.aggregate import DepthAttention, DepthConv, NoAggregator
from volseg.models.attention import attention_function
from volseg.models.contracts import Decoder, FeatureSpec, NetworkPlan
from volseg.models.decoder import UnetrDecoder
from volseg.models.decoders_2d import LinearDecoder, UnetDecoder2d
from volseg.models.dinov2 import build_dinov2
from volseg.models.segmenter import Segmenter
from volseg.models.slices import SliceEncoder, slice_channels
from volseg.models.weights import load_encoder

logger = logging.getLogger(__name__)

TAPS = {"unetr": 4, "linear": 1, "unet2d": 5}
"""Encoder blocks whose tokens each decoder takes."""
UNDECAYED = ("pos_embed", "cls_token", "register_tokens")


def build_model(model: ModelConfig, plan: NetworkPlan) -> nn.Module:
    """Build the network a config describes, for the data a plan describes.

    Returns:
        A `Segmenter`, or a baseline with the same ``forward``, ``halo`` and ``deep_strides``.

    Raises:
        ConfigError: The settings do not fit each other.
        ModelFileError: The encoder's weight file is missing or does not fit.
    """
    if model.baseline == "dynunet":
        from volseg.models.baselines import build_dynunet

        return build_dynunet(plan, halo=(model.adjacent_slices - 1) // 2)
    encoder = _build_encoder(model, plan)
    # the decoder first: then it starts with the same weights whatever the aggregator is
    decoder = _build_decoder(model, plan, encoder.spec if encoder is not None else FeatureSpec())
    aggregator = _build_aggregator(model, encoder)
    network = Segmenter(encoder, aggregator, decoder, plan.spacing_mm, model.adjacent_slices)
    network.pretrained = encoder is not None and model.weights != "random"
    return network


def _build_encoder(model: ModelConfig, plan: NetworkPlan) -> SliceEncoder | None:
    if model.encoder == "identity":
        return None
    if model.decoder == "unetr" and plan.decoder_strides[-1][1:] != (plan.token_stride, plan.token_stride):
        raise ConfigError(
            "the deepest decoder level must have the encoder's token stride in plane",
            found=f"decoder_strides end in {plan.decoder_strides[-1]}, token_stride is {plan.token_stride}",
            mend="set plan.decoder_strides and plan.token_stride together",
        )
    if model.weights is None:
        raise ConfigError(
            "the encoder's weights are not given",
            expected="the path of a DINOv2 weight file, or random",
            mend="set model.weights=FILE, or model.weights=random to train from scratch",
        )
    vit = build_dinov2(
        model.encoder,
        slice_channels(plan.num_channels, model.adjacent_slices),
        attend=attention_function(model.attention),
        drop_path=model.drop_path,
    )
    vit.checkpoint_blocks = model.checkpoint_encoder
    encoder = SliceEncoder(vit, plan.token_stride, model.adjacent_slices, TAPS[model.decoder])
    if model.weights != "random":
        load_encoder(encoder, model.weights, plan.num_channels)
    adapt(encoder, model.adaptation)
    return encoder


def _build_aggregator(model: ModelConfig, encoder: SliceEncoder | None) -> nn.Module:
    if encoder is None or model.aggregator == "none":
        return NoAggregator(encoder.spec if encoder is not None else FeatureSpec())
    if model.aggregator == "conv":
        return DepthConv(encoder.spec)
    return DepthAttention(encoder.spec, encoder.vit.variant.heads, attention_function(model.attention))


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
    model: nn.Module, *, lr: float, encoder_lr_scale: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW.

    Norms, biases, LayerScale and the learned positions and tokens do not decay. An encoder that started from a weight
    file learns at ``lr * encoder_lr_scale``; one that started from random weights at ``lr``, like everything else.

    Args:
        model: A network from `build_model`.
        lr: Learning rate of stem, aggregator and decoder.
        encoder_lr_scale: The pretrained encoder's learning rate as a fraction of ``lr``.
        weight_decay: Decay of the other weights.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``; empty ones and frozen parameters are left out.
    """
    scale = encoder_lr_scale if getattr(model, "pretrained", False) else 1.0
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if name.startswith("encoder.") else "network"
        decays = parameter.ndim > 1 and not name.endswith(UNDECAYED)
        rate, decay = lr * (scale if part == "encoder" else 1.0), weight_decay if decays else 0.0
        key = f"{part}, {'decay' if decays else 'no decay'}"
        group = groups.setdefault(key, {"name": key, "params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def count_parameters(model: nn.Module) -> dict[str, int]:
    """``{"total": ..., "trainable": ...}``."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {"total": sum(size for size, _ in sizes), "trainable": sum(size for size, trained in sizes if trained)}
