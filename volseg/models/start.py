"""Initial weights of a network: random, an encoder's weight file, or a whole volseg model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from volseg.config.schema import ModelConfig
from volseg.config.sizes import format_size
from volseg.errors import ConfigError, ModelFileError
from volseg.io.json_files import parse_json
from volseg.io.paths import is_file, is_folder
from volseg.models.contracts import NetworkPlan, State
from volseg.models.encoders.download import official_file
from volseg.models.encoders.weights import check_fit, load_encoder
from volseg.models.segmenter import Segmenter

logger = logging.getLogger(__name__)

LARGE = 100_000_000
"""Weights from which on a file is compared with its encoder before the encoder is built (400 MB)."""
HEAD = re.compile(r"decoder\.heads?\.")
"""Keys of the layers that map features to classes; they have this name in every decoder."""


def weight_file(model: ModelConfig) -> Path | None:
    """Return the file that a network starts from, downloaded on the first use if official; ``None`` if random.

    Raises:
        ConfigError: ``model.weights`` is not set for an encoder, or this network has no official weights.
        ModelFileError: The file does not exist, or cannot be downloaded.
    """
    if model.weights is None and model.encoder != "identity" and model.baseline is None:
        raise ConfigError(
            "model.weights is not set for the encoder",
            expected="the path of an encoder weight file or a volseg model file, official, or random",
            hint="set model.weights=official or FILE, or model.weights=random to train from scratch",
        )
    if model.weights is None or model.weights == "random":
        return None
    if model.baseline is not None:
        raise ConfigError(
            "a baseline starts from random weights",
            found=f"model.baseline={model.baseline} model.weights={model.weights}",
            hint="set model.weights=random",
        )
    if model.weights == "official":
        return official_file(model.encoder)
    path = Path(model.weights)
    if not is_file(path):
        raise ModelFileError(
            "the weight file does not exist",
            file=path,
            found="a folder" if is_folder(path) else None,
            hint="set model.weights to an encoder's .pth or .safetensors file, a volseg model file, official or random",
        )
    return path


def check_size(path: Path, expected: State) -> None:
    """Check, before a large encoder is built, that a weight file is large enough to hold it.

    Raises:
        ModelFileError: The file has less than one byte for each weight.
    """
    weights = sum(value.numel() for key, value in expected.items() if key.startswith("encoder."))
    size = path.stat().st_size
    if weights >= LARGE and size < weights:
        raise ModelFileError(
            "the weight file is too small for the encoder",
            file=path,
            found=format_size(size),
            expected=f"{weights} weights",
            hint="set model.encoder to the encoder of these weights",
        )


def load_start(network: Segmenter, path: Path, plan: NetworkPlan) -> None:
    """Load a whole volseg model, or the weights of the encoder, into a network, in place.

    Args:
        network: A new network, before its encoder is adapted.
        path: A volseg model file, which has metadata, or an encoder's weight file.
        plan: The network's plan; a model's heads are loaded only if it has the same classes.

    Raises:
        ConfigError: Encoder weights for a network without an encoder.
        ModelFileError: The file is damaged, or keys are missing, unexpected or of another shape; the first are listed.
    """
    metadata = _volseg_metadata(path)
    if metadata is not None:
        _load_network(network, path, _class_names(metadata, path), plan.class_names)
    elif network.encoder is None:
        raise ConfigError(
            "model.weights is an encoder's weight file, but the network has no encoder",
            file=path,
            hint="set model.weights=random beside model.encoder=identity",
        )
    else:
        load_encoder(network.encoder, path, plan.num_channels)


def _load_network(network: Segmenter, path: Path, classes: tuple[str, ...], own_classes: tuple[str, ...]) -> None:
    """Load a whole volseg model; its heads only if its classes are the network's own."""
    state, own = dict(load_file(path)), network.state_dict()
    heads = [key for key in own if HEAD.match(key)]
    if classes != own_classes:
        state = {key: value for key, value in state.items() if not HEAD.match(key)} | {key: own[key] for key in heads}
    hint = "use the model settings and the plan of that model, or set model.weights to encoder weights"
    check_fit(state, own, path, "the model does not fit the network", hint)
    network.load_state_dict(state, strict=True)
    logger.info("all weights from %s", path)
    if classes != own_classes:
        reason = f"that model has the classes {', '.join(classes)}; the data set has {', '.join(own_classes)}"
        logger.warning("reinitialised %s: %s", ", ".join(heads), reason)


def _volseg_metadata(path: Path) -> str | None:
    """Read the metadata that `volseg.io.model_file` writes; ``None`` for any other file."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("volseg")
    except (SafetensorError, OSError) as error:
        raise ModelFileError("the weight file cannot be read", file=path, found=error) from error


def _class_names(metadata: str, path: Path) -> tuple[str, ...]:
    """Read the classes of a volseg model by index, background first."""
    try:
        labels: Mapping[str, Any] = parse_json(metadata, "model", path, ModelFileError)["labels"]
        return tuple(sorted(labels, key=labels.__getitem__))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError("the model file's metadata is damaged", file=path, found=error) from error
