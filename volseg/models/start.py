"""Initial weights of a network: random, an encoder's weight file, or a whole volseg model."""

from __future__ import annotations

from pathlib import Path

from volseg.config.encoders import CATALOGUE
from volseg.config.schema import ModelConfig
from volseg.config.sizes import format_size
from volseg.errors import ConfigError, ModelFileError
from volseg.io.encoder_file import read_entry, read_pretraining
from volseg.io.model_folder import one_model_file
from volseg.io.paths import is_file
from volseg.models.contracts import NetworkPlan, State
from volseg.models.encoders.download import installed_file, official_file
from volseg.models.encoders.weights import encoder_hint, load_encoder, read_weights
from volseg.models.fine_tune import StartRecord, load_model_weights
from volseg.models.segmenter import Segmenter

LARGE = 100_000_000
"""Weights from which on a file is compared with its encoder before the encoder is built (400 MB)."""


def weight_file(model: ModelConfig) -> Path | None:
    """Return the file that a network starts from, downloaded on the first use if official; ``None`` if random.

    Raises:
        ConfigError: ``model.weights`` is not set for an encoder, this network has no official weights, or the file is
            a pretraining of another encoder.
        ModelFileError: The file does not exist, cannot be downloaded, or is damaged.
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
    if model.weights in CATALOGUE and CATALOGUE[model.weights].installed:
        return installed_file(model.weights)
    path = one_model_file(Path(model.weights))
    if not is_file(path):
        raise ModelFileError(
            "the weight file does not exist",
            file=path,
            hint="set model.weights to an encoder's .pth or .safetensors file, a volseg model file, official or random",
        )
    pretrained = (read_pretraining(path) or {}).get("encoder", model.encoder)
    if model.encoder not in (pretrained, "identity"):
        raise ConfigError(
            "the weights were pretrained for another encoder",
            file=path,
            found=f"model.encoder={model.encoder}",
            expected=str(pretrained),
            hint=f"set model.encoder={pretrained}",
        )
    return path


def check_size(path: Path, expected: State) -> None:
    """Check, before a large encoder is built, that a weight file is large enough to hold it.

    Raises:
        ModelFileError: The file has less than one byte for each weight, or is damaged.
    """
    weights = sum(value.numel() for key, value in expected.items() if key.startswith("encoder."))
    size = path.stat().st_size
    if weights >= LARGE and size < weights:
        raise ModelFileError(
            "the weight file is too small for the encoder",
            file=path,
            found=format_size(size),
            expected=f"{weights} weights",
            hint=encoder_hint(read_weights(path)),
        )


def load_start(network: Segmenter, path: Path, model: ModelConfig, plan: NetworkPlan) -> StartRecord:
    """Load what fits of a volseg model, or the weights of the encoder, into a network, in place; log it.

    Args:
        network: A new network, before its encoder is adapted.
        path: A volseg model file, which has metadata, or an encoder's weight file.
        model: The network's configuration.
        plan: The network's plan.

    Returns:
        What was taken over, what was converted, and what starts anew.

    Raises:
        ConfigError: Encoder weights for a network without an encoder.
        ModelFileError: The file is damaged or of another architecture; all differences are listed.
    """
    metadata = _volseg_metadata(path)
    if metadata is not None:
        record = load_model_weights(network, path, metadata, model, plan)
    elif network.encoder is None:
        raise ConfigError(
            "model.weights is an encoder's weight file, but the network has no encoder",
            file=path,
            hint="set model.weights=random beside model.encoder=identity",
        )
    else:
        load_encoder(network.encoder, path, plan.num_channels)
        reason = "the file holds the weights of an encoder alone"
        parts = [name for name, part in network.named_children() if part is not network.encoder and part.state_dict()]
        taken_over = {"encoder": len(network.encoder.state_dict())}
        anew, pretraining = dict.fromkeys(parts, reason), read_pretraining(path)
        record = StartRecord(file=str(path), taken_over=taken_over, anew=anew, pretraining=pretraining)
    record.log()
    return record


def is_volseg_model(path: Path) -> bool:
    """Return whether a weight file is a volseg model.

    Raises:
        ModelFileError: It cannot be read.
    """
    return _volseg_metadata(path) is not None


def _volseg_metadata(path: Path) -> str | None:
    """Read the metadata that `volseg.io.model_file` writes; ``None`` for any other file."""
    return read_entry(path, "volseg")
