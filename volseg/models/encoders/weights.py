"""Encoder weights from files, loaded strictly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from volseg.errors import ModelFileError
from volseg.io.encoder_file import DAMAGED_HINT
from volseg.io.torch_files import read_torch_file
from volseg.models.contracts import ImageEncoder, State
from volseg.models.encoders.recognise import fitting_encoders
from volseg.models.encoders.slices import SliceEncoder

logger = logging.getLogger(__name__)

LISTED = 10  # most keys of a kind in one message
VALUES_HINT = "give a file in float32, float16 or bfloat16, from a training that did not diverge"


def load_encoder(encoder: SliceEncoder, path: str | Path, image_channels: int) -> None:
    """Load a weight file, under any names that the encoder's `official_state` converts, into a slice encoder, in place.

    The patch embedding of an RGB network is adapted to the volume's channels.

    Raises:
        ModelFileError: Keys are missing, unexpected, of another shape, or not finite numbers; the first are listed.
    """
    path = Path(path)
    inflate = partial(inflate_patch_embedding, image_channels=image_channels, adjacent_slices=encoder.adjacent_slices)
    load_state(encoder.vit, read_weights(path), path, inflate)


def load_state(
    vit: ImageEncoder, weights: State, path: Path, adapt: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> None:
    """Load the tensors of a weight file into an encoder, in place.

    Args:
        vit: The encoder.
        weights: The tensors, under any names that its `official_state` converts.
        path: Their file, for messages.
        adapt: Converts an RGB patch embedding ``(E, 3, patch, patch)``; ``None`` for an encoder of RGB images.

    Raises:
        ModelFileError: As `load_encoder`.
    """
    expected, name = vit.state_dict(), vit.input_weight
    # first in the network's type: half precision would round the sum over RGB, and float64 may become infinite
    dtype = expected[name].dtype
    weights = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    state = vit.official_state(weights)
    if adapt is not None and name in state and state[name].shape[1:2] == (3,) and state[name].is_floating_point():
        state[name] = adapt(state[name])
    hint = VALUES_HINT if _shapes(state) == _shapes(expected) else encoder_hint(weights)
    check_fit(state, expected, path, "the weights do not fit the encoder", hint)
    vit.load_state_dict(state, strict=True)
    logger.info("encoder weights from %s", path)


def _shapes(state: State) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def encoder_hint(weights: State) -> str:
    """Return a hint which encoder a file of other weights is for."""
    names = fitting_encoders(weights)
    if not names:
        return "give a weight file of an encoder that volseg has: volseg settings model.encoder lists them"
    return f"these are weights of {' or '.join(names)}: set model.encoder={names[0]}"


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from an official ``.pth`` (no pickled code is run) or a ``.safetensors`` file.

    Of a training checkpoint, a dict of dicts, the teacher, the target encoder (MSN) or the model is read.

    Raises:
        ModelFileError: The file is damaged, or holds something else.
    """
    hint = DAMAGED_HINT
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelFileError("the weight file cannot be read", file=path, found=error, hint=hint) from error
    else:
        state = read_torch_file(path, "the weight file cannot be read", hint)
    for name in ("teacher", "target_encoder", "model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(_is_weight(key, value) for key, value in state.items()):
        expected = "a dict of dense tensors by name, each value stored"
        raise ModelFileError("not a weight file", file=path, found=type(state).__name__, expected=expected, hint=hint)
    return state


def _is_weight(key: object, value: object) -> bool:
    """Return whether an item is a name with a dense tensor in memory that does not claim more values than it stores."""
    if not (isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided):
        return False
    return value.device.type == "cpu" and value.nbytes <= value.untyped_storage().nbytes()


def inflate_patch_embedding(weight: torch.Tensor, image_channels: int, adjacent_slices: int) -> torch.Tensor:
    """Convert an RGB patch embedding into one for slices: equal channels give the tokens of a grey image.

    Args:
        weight: ``(E, 3, patch, patch)``.
        image_channels: Modalities C.
        adjacent_slices: 1 or 3; with 3 the neighbours share weights (see `gather_slices`).

    Returns:
        ``(E, C, patch, patch)``, or ``(E, 2 C, patch, patch)`` with neighbours: the sum over RGB, divided evenly among
        modalities and slices.
    """
    share = weight.sum(dim=1, keepdim=True) / (image_channels * adjacent_slices)
    roles = 2 if adjacent_slices > 1 else 1
    return share.repeat(1, image_channels * roles, 1, 1)


def rgb_patch_embedding(weight: torch.Tensor, image_channels: int) -> torch.Tensor:
    """Convert a patch embedding for slices into one of RGB images: a grey image gives the tokens of equal channels.

    Args:
        weight: ``(E, C, patch, patch)``, or ``(E, 2 C, patch, patch)`` with neighbours, as `inflate_patch_embedding`
            makes it.
        image_channels: Modalities C.

    Returns:
        ``(E, 3, patch, patch)``, three times the same.
    """
    own, neighbours = weight[:, :image_channels], weight[:, image_channels:]
    grey = own.sum(dim=1, keepdim=True) + 2 * neighbours.sum(dim=1, keepdim=True)  # previous + next is one channel
    return (grey / 3).repeat(1, 3, 1, 1)


def check_shapes(
    shapes: Mapping[str, Sequence[int]], expected: State, path: Path, problem: str, hint: str | None = None
) -> None:
    """Check the keys and shapes of a state dict.

    Args:
        shapes: Name -> shape of the tensors of a file.
        expected: The network's own state dict; its values are not read, so that it may lie on the meta device.
        path: The file.
        problem: First line of the error.
        hint: How to fix it.

    Raises:
        ModelFileError: A key is missing, unexpected or of another shape; the first are listed.
    """
    missing = [f"missing {key}" for key in sorted(expected.keys() - shapes.keys())]
    unexpected = [f"unexpected {key}" for key in sorted(shapes.keys() - expected.keys())]
    other_shapes = [
        f"{key} is {tuple(shapes[key])}, expected {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & shapes.keys())
        if tuple(expected[key].shape) != tuple(shapes[key])
    ]
    _refuse([missing, unexpected, other_shapes], path, problem, hint)


def check_fit(state: State, expected: State, path: Path, problem: str, hint: str | None = None) -> None:
    """Check the keys, shapes and types of a state dict, and that all values are finite.

    Args:
        state: The state dict of a file.
        expected: The network's own state dict.
        path: The file.
        problem: First line of the error.
        hint: How to fix it.

    Raises:
        ModelFileError: A key is missing, unexpected or of another shape, or its values are invalid; the first are
            listed.
    """
    check_shapes({key: value.shape for key, value in state.items()}, expected, path, problem, hint)
    problems = []
    for key in sorted(expected):
        if expected[key].is_floating_point() and not state[key].is_floating_point():
            problems.append(f"{key} is {state[key].dtype}, expected floating point")
        elif not state[key].isfinite().all():
            problems.append(f"{key} has values that are not finite")
    _refuse([problems], path, problem, hint)


def _refuse(kinds: Sequence[Sequence[str]], path: Path, problem: str, hint: str | None) -> None:
    """Raise an error that lists the first keys of each kind, if there are any."""
    lines = [f"{sum(map(len, kinds))}:"]
    for keys in kinds:
        lines += [*keys[:LISTED], *([f"and {len(keys) - LISTED} more"] if len(keys) > LISTED else [])]
    if len(lines) > 1:
        raise ModelFileError(problem, file=path, found="\n    ".join(lines), hint=hint)
