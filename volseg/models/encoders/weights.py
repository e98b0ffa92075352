"""Encoder weights from files: strictly, or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from volseg.errors import ModelFileError
from volseg.models.encoders.key_names import PATCH_WEIGHT, State, official_names
from volseg.models.encoders.slices import SliceEncoder

logger = logging.getLogger(__name__)


def load_encoder(encoder: SliceEncoder, path: str | Path, image_channels: int) -> None:
    """Load DINOv2 weights, under any names that `official_names` knows, into a slice encoder, in place.

    Raises:
        ModelFileError: Keys are missing, unexpected, of another shape, or not finite numbers; each is listed.
    """
    path = Path(path)
    state = official_names(read_weights(path))
    if PATCH_WEIGHT in state and state[PATCH_WEIGHT].shape[1:2] == (3,):
        state[PATCH_WEIGHT] = inflate_patch_embedding(state[PATCH_WEIGHT], image_channels, encoder.adjacent_slices)
    hint = "set model.encoder to the model these weights belong to"
    check_fit(state, encoder.vit.state_dict(), path, "the weights do not fit the encoder", hint)
    encoder.vit.load_state_dict(state, strict=True)
    logger.info("encoder weights from %s", path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from an official ``.pth`` (no pickled code is run) or a ``.safetensors`` file.

    A training checkpoint is a dict of dicts; its teacher or model is taken.

    Raises:
        ModelFileError: The file is damaged, or holds something else.
    """
    hint = "if it was downloaded, delete it and download it again"
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelFileError("the weight file cannot be read", file=path, found=error, hint=hint) from error
    else:
        state = read_pickle(path, "the weight file cannot be read", hint)
    for name in ("teacher", "model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(_is_weight(key, value) for key, value in state.items()):
        expected = "a dict of dense tensors by name"
        raise ModelFileError("not a weight file", file=path, found=type(state).__name__, expected=expected)
    return state


def read_pickle(path: Path, problem: str, hint: str) -> Any:
    """Read what `torch.save` wrote onto the CPU: tensors and plain values only, code is never run.

    Raises:
        ModelFileError: The file is damaged or holds something else; ``problem`` and ``hint`` as given.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch's unpickler raise errors of any kind
        # torch's own text is of its unpickler's insides, or advises to run whatever is in the file
        other = f"no file of tensors alone, as torch.save writes it ({type(error).__name__})"
        found = error if isinstance(error, OSError) else other
        raise ModelFileError(problem, file=path, found=found, hint=hint) from error


def _is_weight(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def inflate_patch_embedding(weight: torch.Tensor, image_channels: int, adjacent_slices: int) -> torch.Tensor:
    """Turn an RGB patch embedding into one for slices, so that equal channels give what a grey image gave.

    Args:
        weight: ``(E, 3, 14, 14)``.
        image_channels: Modalities C.
        adjacent_slices: 1 or 3; with 3 the neighbours share weights (see `gather_slices`).

    Returns:
        ``(E, C, 14, 14)``, or ``(E, 2 C, 14, 14)`` with neighbours: the sum over RGB, shared out evenly over the
        modalities and slices.
    """
    share = weight.sum(dim=1, keepdim=True) / (image_channels * adjacent_slices)
    roles = 2 if adjacent_slices > 1 else 1
    return share.repeat(1, image_channels * roles, 1, 1)


def check_fit(state: State, expected: State, path: Path, problem: str, hint: str) -> None:
    """Refuse a state dict that lacks, adds or misshapes a key, or holds what is not a finite number.

    Raises:
        ModelFileError: It does; ``problem``, ``path`` and ``hint`` as given, and every such key.
    """
    problems = [f"missing {key}" for key in sorted(expected.keys() - state.keys())]
    problems += [f"unexpected {key}" for key in sorted(state.keys() - expected.keys())]
    for key in sorted(expected.keys() & state.keys()):
        if expected[key].shape != state[key].shape:
            problems.append(f"{key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}")
        elif not state[key].is_floating_point():
            problems.append(f"{key} is {state[key].dtype}, expected floating point")
        elif not state[key].isfinite().all():
            problems.append(f"{key} has values that are not finite")
    if problems:
        raise ModelFileError(problem, file=path, found="\n    " + "\n    ".join(problems), hint=hint)
