"""Which encoder of the catalogue a weight file is for."""

from __future__ import annotations

from importlib import import_module

import torch

from volseg.config.encoders import CATALOGUE
from volseg.models.attention import sdpa
from volseg.models.contracts import ImageEncoder, State
from volseg.models.encoders import key_names


def fitting_encoders(state: State) -> list[str]:
    """Return the encoders whose keys and shapes are exactly those of a weight file of RGB images.

    Every encoder of the catalogue is built on the meta device and tried; no value of the file is read.

    Args:
        state: Tensors by name, as in the file.
    """
    outline = {key: torch.empty_like(value, device="meta") for key, value in state.items()}
    was_disabled, key_names.logger.disabled = key_names.logger.disabled, True  # most names are tried in vain
    try:
        return [name for name in CATALOGUE if _fits(name, outline)]
    finally:
        key_names.logger.disabled = was_disabled


def _fits(name: str, outline: State) -> bool:
    entry = CATALOGUE[name]
    with torch.device("meta"):
        network: ImageEncoder = import_module(entry.module).build(entry, 3, attend=sdpa, drop_path=0.0)
    own = network.official_state(outline)
    return {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }
