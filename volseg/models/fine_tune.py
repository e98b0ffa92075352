"""Fine-tuning: the weights of a volseg model, fitted into a network for other classes, channels or spacings."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from volseg.config.schema import ModelConfig
from volseg.errors import ModelFileError, counted
from volseg.io.encoder_file import pretraining_text
from volseg.io.json_files import parse_json
from volseg.models.contracts import NetworkPlan, State
from volseg.models.encoders.weights import check_fit
from volseg.models.segmenter import Segmenter

logger = logging.getLogger(__name__)

HEAD = re.compile(r"decoder\.heads?\.")
"""Keys of the layers that map features to classes; they have this name in every decoder."""
DECODER = "decoder."
"""The part whose levels and kernels follow the plan; all other parts fit as a whole or not at all."""
DAMAGED = "the model file's metadata is damaged"


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """What a network started from, for the log and for ``provenance.json``.

    Attributes:
        file: The weight file.
        taken_over: Number of tensors that were taken over unchanged, by part of the network.
        adapted: How a tensor was converted, by its name.
        anew: Why a tensor starts from random weights, by its name, or by the part where all of it does.
        left_out: Number of tensors of the file that the network does not have, by part.
        pretraining: How ``volseg pretrain`` made the file; ``None`` for any other.
    """

    file: str
    taken_over: Mapping[str, int]
    adapted: Mapping[str, str] = field(default_factory=dict)
    anew: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    pretraining: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings."""
        return asdict(self)

    def log(self) -> None:
        """Write a line for each kind of weights; a warning for those that start anew."""
        logger.info("weights from %s: %s", self.file, _counted(self.taken_over))
        if self.pretraining is not None:
            logger.info("these weights were pretrained: %s", pretraining_text(self.pretraining))
        for name, rule in self.adapted.items():
            logger.info("adapted %s: %s", name, rule)
        for reason in dict.fromkeys(self.anew.values()):
            names = [name for name, other in self.anew.items() if other == reason]
            logger.warning("starts anew: %s: %s", _anew_text(names), reason)
        if self.left_out:
            logger.info("left out, because the network has no such part: %s", _counted(self.left_out))


def load_model_weights(
    network: Segmenter, path: Path, metadata: str, model: ModelConfig, plan: NetworkPlan
) -> StartRecord:
    """Load the weights of a volseg model that fit into a network, in place; the others keep their random values.

    Encoder and aggregator are taken over as a whole. Of the decoder, every tensor of the same name and shape is:
    levels have names by their stride in plane, and kernels follow the spacing. Heads are taken over if the classes are
    the same, in the same order. Weights that read image channels are converted by `adapt_channels`.

    Args:
        network: A new network, before its encoder is adapted.
        path: The model file.
        metadata: What `volseg.io.model_file` writes beside the weights, as text.
        model: The network's configuration.
        plan: The network's plan.

    Returns:
        What was taken over, what was converted, and what starts anew.

    Raises:
        ModelFileError: The file is damaged, or the model has another architecture; all differences are listed.
    """
    settings, channels, classes = _described(metadata, path)
    _check_architecture(settings, model, path)
    state, own = dict(load_file(path)), network.state_dict()
    adapted: dict[str, str] = {}
    for key in input_weights(network):
        if key in state and key in own:
            state[key], rule = adapt_channels(state[key], channels, plan.channels, path)
            adapted |= {key: rule} if rule else {}
    anew = _anew(state, own, classes, plan.class_names)
    left_out = [key for key in state if key.startswith(DECODER) and key not in own]
    fitted = {key: value for key, value in state.items() if key not in anew and key not in left_out}
    hint = "use the model settings of that model, or set model.weights to encoder weights"
    check_fit(fitted | {key: own[key] for key in anew}, own, path, "the model does not fit the network", hint)
    network.load_state_dict({**own, **fitted}, strict=True)
    adapted = {key: rule for key, rule in adapted.items() if key not in anew}
    taken_over = _parts(key for key in own if key not in anew and key not in adapted)
    return StartRecord(file=str(path), taken_over=taken_over, adapted=adapted, anew=anew, left_out=_parts(left_out))


def input_weights(network: Segmenter) -> list[str]:
    """Return the names of the weights that read the image channels, axis 1."""
    encoder, decoder = network.encoder, network.decoder
    names = [f"encoder.vit.{encoder.vit.input_weight}"] if encoder is not None else []
    return names if decoder.input_weight is None else [*names, f"{DECODER}{decoder.input_weight}"]


def adapt_channels(
    weight: torch.Tensor, before: Sequence[str], after: Sequence[str], path: Path
) -> tuple[torch.Tensor, str]:
    """Convert a weight that reads image channels into one for the channels of another data set.

    A channel that both have, by its name in any case, keeps its weights. Every other one gets the mean over the
    channels of the model; if no channel is shared, the means are scaled by old to new number of channels, so that
    equal images in all channels give the same result as before, as with the weights of RGB networks.

    Args:
        weight: ``(E, R C, ...)``, R groups of C channels (the slice, and its neighbours).
        before: The C names of the model's channels.
        after: Names of the new channels.
        path: The model file, for errors.

    Returns:
        ``(E, R len(after), ...)``, and the rule in words; an empty text where nothing changed.

    Raises:
        ModelFileError: The weight has another number of channels than the model's plan.
    """
    if weight.shape[1] % len(before):
        found = f"{counted(weight.shape[1], 'channel')} of a weight, {len(before)} of the plan"
        raise ModelFileError(DAMAGED, file=path, found=found)
    old, new = ([name.strip().lower() for name in names] for names in (before, after))
    if old == new:
        return weight, ""
    groups = weight.reshape(len(weight), -1, len(old), *weight.shape[2:])  # (E, R, C, ...)
    shared = set(old) & set(new)
    mean = groups.mean(dim=2) * (1.0 if shared else len(old) / len(new))
    channels = [groups[:, :, old.index(name)] if name in shared else mean for name in new]
    own = [name for name, key in zip(after, new, strict=True) if key in shared]
    others = [name for name, key in zip(after, new, strict=True) if key not in shared]
    rules = [f"{', '.join(own)}: by name"] if own else []
    if others:
        factor = "" if shared or len(old) == len(new) else f", times {len(old)}/{len(new)}"
        rules.append(f"{', '.join(others)}: mean of {', '.join(before)}{factor}")
    return torch.stack(channels, dim=2).flatten(1, 2), "input channels " + "; ".join(rules)


def _described(metadata: str, path: Path) -> tuple[dict[str, Any], list[str], tuple[str, ...]]:
    """Read the settings of a model, the names of its channels, and those of its outputs, background first."""
    try:
        content = parse_json(metadata, "model", path, ModelFileError)
        settings, channels, labels = content["config"]["model"], content["plan"]["channels"], content["labels"]
        if not channels or not all(isinstance(name, str) for name in channels):
            raise ValueError(f"plan.channels: {channels}")
        classes = content["plan"].get("regions") or sorted(labels, key=labels.__getitem__)
        return dict(settings), list(channels), tuple(classes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(DAMAGED, file=path, found=error) from error


def _check_architecture(settings: Mapping[str, Any], model: ModelConfig, path: Path) -> None:
    """Check that a model has the parts of a network; settings that older files lack have their defaults."""
    names = ["baseline", "encoder", "decoder", "adjacent_slices"]
    names += ["aggregator"] if model.encoder != "identity" else []
    names += ["stem", "features", "max_features"] if model.decoder == "unetr" else []
    stored = {name: settings.get(name, getattr(ModelConfig, name)) for name in names}
    differing = [name for name in names if stored[name] != getattr(model, name)]
    if differing:
        raise ModelFileError(
            "the model of model.weights has another architecture",
            file=path,
            found=", ".join(f"model.{name}={_text(stored[name])}" for name in differing),
            expected=", ".join(f"model.{name}={_text(getattr(model, name))}" for name in differing),
            hint="set " + " ".join(f"model.{name}={_text(stored[name])}" for name in differing),
        )


def _anew(state: State, own: State, classes: tuple[str, ...], own_classes: tuple[str, ...]) -> dict[str, str]:
    """Return the tensors of the decoder that cannot be taken over, each with the reason."""
    anew = {}
    for key in [key for key in own if key.startswith(DECODER)]:
        if HEAD.match(key) and classes != own_classes:
            anew[key] = f"that model has the classes {', '.join(classes)}; the data set has {', '.join(own_classes)}"
        elif key not in state:
            anew[key] = "that model has no such level"
        elif state[key].shape != own[key].shape:
            anew[key] = "that model has another shape here, because spacing or strides differ"
    return anew


def _parts(keys: Iterable[str]) -> dict[str, int]:
    """Count names of tensors by part: ``encoder``, ``decoder.stem.0``."""
    return dict(Counter(".".join(key.split(".")[: 3 if key.startswith(DECODER) else 1]) for key in keys))


def _counted(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count} tensor{'s' * (count > 1)})" for name, count in parts.items()) or "none"


def _anew_text(names: Sequence[str]) -> str:
    """Return whole parts, whose names have no dot, and tensors counted by part."""
    whole = [f"all of {name}" for name in names if "." not in name]
    tensors = _parts(name for name in names if "." in name)
    return ", ".join([*whole, *([_counted(tensors)] if tensors else [])])


def _text(value: Any) -> str:
    """Return a value as on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
