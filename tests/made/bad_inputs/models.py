"""Bad model files and weight files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import volseg
from tests.made.bad_inputs.cases import BadInput
from tests.made.trained import MODEL, PLAN, metadata
from volseg.config.load import load_config
from volseg.config.schema import ModelConfig
from volseg.io.model_file import save_model
from volseg.models.build import build_model
from volseg.models.start import load_start, weight_file

NAME = "model.safetensors"
SMALL = {**MODEL, "encoder": "identity", "features": 2, "max_features": 4}


def state() -> dict[str, Any]:
    """Return random weights of a small network."""
    torch.manual_seed(0)
    return build_model(ModelConfig(**SMALL), PLAN).state_dict()


def described_model() -> dict[str, Any]:
    """Return the metadata of the small network."""
    return {**metadata(PLAN), "config": {"model": SMALL}}


@cache
def model_bytes() -> bytes:
    """Return the content of a good model file."""
    with TemporaryDirectory() as folder:
        save_model(Path(folder) / NAME, state(), described_model())
        return (Path(folder) / NAME).read_bytes()


def model(name: str = NAME) -> Path:
    """Write a good model file."""
    Path(name).write_bytes(model_bytes())
    return Path(name)


def loaded(content: bytes) -> Callable[[], object]:
    """Return an attempt to load a model file with this content."""

    def attempt() -> object:
        Path(NAME).write_bytes(content)
        return volseg.load(NAME, device="cpu")

    return attempt


def described(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Callable[[], object]:
    """Return an attempt to load a model file whose weights and metadata are changed before they are written."""

    def attempt() -> object:
        weights, content = state(), described_model()
        change(weights, content)
        save_model(Path(NAME), weights, content)
        return volseg.load(NAME, device="cpu")

    return attempt


def not_finite(weights: dict[str, Any], content: dict[str, Any]) -> None:
    weights[next(iter(weights))].fill_(np.nan)


def other_network(weights: dict[str, Any], content: dict[str, Any]) -> None:
    content["config"] = {"model": {**SMALL, "features": 4}}


def newer() -> object:
    content = model_bytes().replace(b'\\"format\\": 1', b'\\"format\\": 9')
    return loaded(content)()


def unfinished_run() -> object:
    Path("run/checkpoint").mkdir(parents=True)
    return volseg.load("run", device="cpu")


def encoder_weights() -> object:
    save_file({"blocks.0.norm1.weight": torch.ones(8)}, NAME)
    return volseg.load(NAME, device="cpu")


def unlike_models() -> object:
    model("first.safetensors")
    content = described_model()
    content["plan"]["labels"] = content["labels"] = {"background": 0, "liver": 1, "kidney": 2, "spine": 3}
    save_model(Path("second.safetensors"), state(), content)
    return volseg.load(["first.safetensors", "second.safetensors"], device="cpu")


def started(write: Callable[[], object] = lambda: None, **settings: Any) -> Callable[[], object]:
    """Return an attempt to start training from a weight file."""

    def attempt() -> object:
        write()
        given = load_config(None, [f"model.{key}={value}" for key, value in ({**MODEL} | settings).items()]).model
        path = weight_file(given)
        assert path is not None
        return load_start(build_model(given, PLAN), path, PLAN)

    return attempt


MODELS = (
    BadInput("A model file with a typing error", NAME, lambda: volseg.load(NAME, device="cpu")),
    BadInput("The folder of a training that has not finished", "run", unfinished_run),
    BadInput("A model file that was cut off while copying", NAME, lambda: loaded(model_bytes()[:-100])()),
    BadInput("Weights of an encoder in place of a model", NAME, encoder_weights),
    BadInput("A model file of a newer volseg", NAME, newer),
    BadInput("A model file with weights that are not finite", NAME, described(not_finite)),
    BadInput("A model file whose settings do not fit its weights", NAME, described(other_network)),
    BadInput("An ensemble of models for other classes", "second.safetensors", unlike_models),
    BadInput("`model.weights` that are not set", "model.weights", started(weights="null")),
    BadInput("`model.weights` that are not there", "dino.pth", started(weights="dino.pth")),
    BadInput("`model.weights` of another encoder", "dino.safetensors",
             started(lambda: save_file({"blocks.0.norm1.weight": torch.ones(8)}, "dino.safetensors"),
                     weights="dino.safetensors")),
    BadInput("`model.weights` that are no weights", "dino.pth",
             started(lambda: Path("dino.pth").write_text("<html>"), weights="dino.pth")),
    BadInput("Official weights of an encoder that has none", "model.encoder", started(weights="official")),
    BadInput("Official weights that need a licence", "model.encoder",
             started(encoder="dinov3_s16", weights="official")),
)  # fmt: skip
