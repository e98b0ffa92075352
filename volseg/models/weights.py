"""Encoder weights from files: strictly, or not at all."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from volseg.errors import ModelFileError
from volseg.models.slices import SliceEncoder

logger = logging.getLogger(__name__)

PATCH_WEIGHT = "patch_embed.proj.weight"


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a flat state dict from an official ``.pth`` (no pickled code is run) or a ``.safetensors`` file.

    Raises:
        ModelFileError: The file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(
            "the encoder weight file does not exist",
            file=path,
            mend="set model.weights to the path of a DINOv2 .pth or .safetensors file, or to random",
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelFileError("the encoder weight file cannot be read", file=path, found=error) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelFileError(
            "not an encoder weight file", file=path, found=type(state).__name__, expected="a flat dict of tensors"
        )
    return state


def inflate_patch_embedding(weight: torch.Tensor, image_channels: int, adjacent_slices: int) -> torch.Tensor:
    """Turn an RGB patch embedding into one for slices, so that equal channels give what a grey image gave.

    Args:
        weight: ``(E, 3, 14, 14)``.
        image_channels: Modalities C.
        adjacent_slices: 1 or 3; with 3 the neighbours share weights (see `volseg.models.slices.gather_slices`).

    Returns:
        ``(E, C, 14, 14)``, or ``(E, 2 C, 14, 14)`` with neighbours: the sum over RGB, shared out evenly over the
        modalities and slices.
    """
    share = weight.sum(dim=1, keepdim=True) / (image_channels * adjacent_slices)
    roles = 2 if adjacent_slices > 1 else 1
    return share.repeat(1, image_channels * roles, 1, 1)


def load_encoder(encoder: SliceEncoder, path: str | Path, image_channels: int) -> None:
    """Load official weights into a slice encoder, in place.

    Raises:
        ModelFileError: Keys are missing, unexpected or of another shape; each is listed.
    """
    state = read_weights(path)
    expected = encoder.vit.state_dict()
    if PATCH_WEIGHT in state and state[PATCH_WEIGHT].shape[1:2] == (3,):
        state[PATCH_WEIGHT] = inflate_patch_embedding(state[PATCH_WEIGHT], image_channels, encoder.adjacent_slices)
    problems = [f"missing {key}" for key in sorted(expected.keys() - state.keys())]
    problems += [f"unexpected {key}" for key in sorted(state.keys() - expected.keys())]
    for key in sorted(expected.keys() & state.keys()):
        if expected[key].shape != state[key].shape:
            problems.append(f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}")
    if problems:
        raise ModelFileError(
            "the weights do not fit the encoder",
            file=path,
            found="\n    " + "\n    ".join(problems),
            mend="set model.encoder to the model these weights belong to",
        )
    encoder.vit.load_state_dict(state, strict=True)
    logger.info("encoder weights from %s", path)
