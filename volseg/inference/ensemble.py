"""Trained networks from model files, grouped so that shared work is done once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError, ModelFileError
from volseg.io.model_file import read_metadata, read_model, read_shapes
from volseg.models.build import build_model, expected_state
from volseg.models.contracts import SegmentationNetwork
from volseg.models.encoders.weights import check_fit, check_shapes
from volseg.planning.plan import Plan
from volseg.postprocessing.rules import Postprocessing

PROBLEM = "the weights do not fit the network"
HINT = "copy the model file again from its source; if that does not help, train the model again"


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network.

    Attributes:
        model: The network.
        plan: Its plan.
        postprocessing: Postprocessing of its masks.
        end: The end of its training as configured: ``train.max_steps=250``.
    """

    model: SegmentationNetwork
    plan: Plan
    postprocessing: Postprocessing = field(default_factory=Postprocessing)
    end: str = ""


def read_network(path: Path, device: torch.device, dtype: torch.dtype) -> Network:
    """Read a model file.

    The network is built only if the file holds its weights: a small file may name a network of gigabytes.

    Args:
        path: The file.
        device: Where the network will run; its attention kernel is tried there.
        dtype: Precision in which it will run.

    Raises:
        ModelFileError: The file is missing, damaged, of another kind, its parts do not fit together, or a weight is not
            finite.
    """
    metadata = read_metadata(path)
    try:
        plan = Plan.from_dict(metadata["plan"])
        postprocessing = Postprocessing.from_dict(metadata.get("postprocessing", {}), plan.label_map)
        config = _model_config(metadata["config"])
        with torch.random.fork_rng(devices=[]):  # the random weights are overwritten; keep the caller's random state
            expected = expected_state(config, plan)
            check_shapes(read_shapes(path), expected, path, PROBLEM, HINT)
            model = build_model(config, plan, device=device, dtype=dtype)
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:  # torch: sizes beyond 64 bits
        raise ModelFileError("the model file's settings are not valid", file=path, found=error) from error
    state, _ = read_model(path)
    check_fit(state, expected, path, PROBLEM, HINT)
    model.load_state_dict(state, strict=True)
    train = metadata["config"].get("train", {})
    ends = [f"train.{key}={train[key]}" for key in ("max_steps", "max_minutes") if train.get(key) is not None]
    return Network(model.eval(), plan, postprocessing, " ".join(ends))


def check_ensemble(networks: Sequence[Network], paths: Sequence[Path]) -> None:
    """Check that the networks segment the same classes in the same channels.

    Raises:
        ConfigError: They do not; the file is named.
    """
    first = networks[0].plan
    for network, path in zip(networks[1:], paths[1:], strict=True):
        plan = network.plan
        for name, value, expected in (
            ("labels", plan.labels, first.labels),
            ("regions", _in_order(plan), _in_order(first)),
            ("channels", plan.channels, first.channels),
        ):
            if value != expected:
                raise ConfigError(
                    f"the models of an ensemble have other {name}",
                    file=path,
                    found=value,
                    expected=f"{expected}, as in {paths[0]}",
                )


def check_folds(folds: Sequence[Network], paths: Sequence[Path]) -> None:
    """Check that the folds of one cross-validation are trained to the same end: it may have been extended only partly.

    Raises:
        ConfigError: They are not.
    """
    if len({fold.end for fold in folds}) > 1:
        raise ConfigError(
            "the folds of the cross-validation are trained to different ends",
            file=paths[0].parents[1],
            found="; ".join(f"{path.parent.name}: {fold.end}" for fold, path in zip(folds, paths, strict=True)),
            expected="one end for all",
            hint="finish volseg crossval with the later end, or give the models of single folds",
        )


def common_postprocessing(networks: Sequence[Network]) -> Postprocessing | None:
    """Return the postprocessing of all networks; ``None`` if they differ."""
    first = networks[0].postprocessing
    return first if all(network.postprocessing == first for network in networks) else None


def _in_order(plan: Plan) -> list[tuple[str, tuple[int, ...]]]:
    """Return the regions in their order, which is that of the outputs."""
    return list((plan.regions or {}).items())


def group_networks(networks: Sequence[Network]) -> list[tuple[Plan, list[SegmentationNetwork]]]:
    """Group the networks that can use the same prepared slabs: those with the same plan and the same halo.

    Within a group, networks with equal encoders (a frozen one, in the folds of one plan) are changed to share one
    encoder object, and so its tokens.
    """
    groups: list[tuple[Plan, list[SegmentationNetwork]]] = []
    for network in networks:
        for plan, models in groups:
            if plan == network.plan and models[0].halo == network.model.halo:
                _share_encoder(network.model, models)
                models.append(network.model)
                break
        else:
            groups.append((network.plan, [network.model]))
    return groups


def _share_encoder(model: SegmentationNetwork, others: Sequence[SegmentationNetwork]) -> None:
    for other in others:
        if model.encoder is not None and other.encoder is not None and _equal(model.encoder, other.encoder):
            model.encoder = other.encoder
            return


def _equal(encoder: nn.Module, other: nn.Module) -> bool:
    """Return whether two encoders of the same plan and halo give the same tokens."""
    ours, theirs = encoder.state_dict(), other.state_dict()
    return str(encoder) == str(other) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Return the network's settings, without initial weights: its weights come from the model file."""
    settings = dict(config["model"])
    unknown = sorted(set(settings) - {setting.name for setting in fields(ModelConfig)})
    if unknown:
        raise ConfigError("unknown model settings", found=", ".join(unknown), hint="update volseg")
    return replace(ModelConfig(**settings), weights="random")
