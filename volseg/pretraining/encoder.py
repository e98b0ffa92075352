"""The encoder that is pretrained: built for RGB images, as official weight files are."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError, ModelFileError
from volseg.io.model_file import read_model
from volseg.models.attention import attention_function
from volseg.models.build import Undrawn
from volseg.models.contracts import ImageEncoder
from volseg.models.encoders.transformer import VisionTransformer
from volseg.models.encoders.weights import load_state, read_weights, rgb_patch_embedding
from volseg.models.start import is_volseg_model

IN_MODEL = "encoder.vit."
"""Prefix of the encoder's weights in a volseg model."""


def check_encoder(model: ModelConfig) -> None:
    """Check that a configuration names an encoder that can be pretrained: with a class token and a mask token.

    Raises:
        ConfigError: It has none, or a setting concerns only other networks.
    """
    if model.baseline is not None or model.encoder == "identity" or not is_pretrainable(model.encoder):
        name = f"model.baseline={model.baseline}" if model.baseline is not None else f"model.encoder={model.encoder}"
        raise ConfigError(
            "pretraining needs an encoder with a class token and a mask token",
            found=name,
            expected=", ".join(filter(is_pretrainable, CATALOGUE)),
            hint="set model.encoder to one of these",
        )


def is_pretrainable(name: str) -> bool:
    """Return whether an encoder of the catalogue has a class token and a mask token."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), Undrawn():
        network = _built(ModelConfig(encoder=name))
    return isinstance(network, VisionTransformer) and network.mask_token is not None


def build_encoder(model: ModelConfig, start: Path | None) -> VisionTransformer:
    """Build the encoder of a configuration, with three input channels.

    Args:
        model: The configuration.
        start: Weight file of an encoder or a volseg model; ``None`` keeps random weights.

    Raises:
        ModelFileError: The file does not fit.
    """
    vit = _built(model)
    assert isinstance(vit, VisionTransformer)  # checked before
    assert vit.mask_token is not None
    vit.checkpoint_layers = model.checkpoint_encoder
    vit.mask_token.requires_grad_(True)
    if start is not None and is_volseg_model(start):
        _load_from_model(vit, start)
    elif start is not None:
        load_state(vit, read_weights(start), start)
    return vit


def _built(model: ModelConfig) -> ImageEncoder:
    entry = CATALOGUE[model.encoder]
    attend = attention_function(model.attention)
    network: ImageEncoder = import_module(entry.module).build(entry, 3, attend=attend, drop_path=model.drop_path)
    return network


def _load_from_model(vit: VisionTransformer, path: Path) -> None:
    """Load the encoder of a volseg model; its input channels become three equal ones."""
    state, metadata = read_model(path)
    own = {key.removeprefix(IN_MODEL): value for key, value in state.items() if key.startswith(IN_MODEL)}
    channels = metadata["plan"].get("channels")
    weight = own.get(vit.input_weight)
    if weight is None or not channels:
        hint = "give a model with an encoder, or the weight file of an encoder"
        raise ModelFileError("the model has no encoder that can be read", file=path, hint=hint)
    own[vit.input_weight] = rgb_patch_embedding(weight, len(channels))
    load_state(vit, own, path)
