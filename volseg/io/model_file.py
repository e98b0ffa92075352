"""The model file: a ``.safetensors`` with the weights and, as plain JSON metadata, everything that prediction needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.errors import ModelFileError
from volseg.geometry.volume import LARGEST_LABEL
from volseg.io.atomic import atomic_file
from volseg.io.json_files import parse_json
from volseg.io.model_folder import MODEL_HINT
from volseg.io.paths import is_file, is_folder
from volseg.io.tensors import separate

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the metadata's layout; files of a newer version are refused."""

_KEY = "volseg"
_REQUIRED = ("config", "plan", "labels")
_OPTIONAL = ("postprocessing", "versions", "training")


def save_model(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a model file atomically.

    Args:
        path: Where to write; the folder is created.
        state: The network's ``state_dict``.
        metadata: ``config``, ``plan``, ``labels``, and optionally ``postprocessing``, ``versions``, ``training``;
            anything :mod:`json` can write.

    Raises:
        ModelFileError: A part of the metadata is missing or cannot be written as JSON.
        OutputError: The file cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    content = save(separate(state), metadata={"format": "pt", _KEY: _document(metadata, path)})
    with atomic_file(path) as file:  # not by safetensors' save_file, which would replace this file by one of its own
        file.write(content)


def read_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights (on the CPU) and metadata; nothing in the file is executed.

    Raises:
        ModelFileError: The file is missing, damaged, of another kind or of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return state, metadata


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of the tensors in a ``.safetensors`` file; no tensor is read.

    The library compares the header with the file: the tensors have exactly its size.

    Raises:
        ModelFileError: The file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(Path(path), error) from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a model file without importing torch.

    Raises:
        ModelFileError: As :func:`read_model`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not is_file(path):
        found = "a folder" if is_folder(path) else "nothing"
        raise ModelFileError("there is no such model file", file=path, found=found, hint=MODEL_HINT)
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    if _KEY not in header:
        raise ModelFileError(
            "the file holds weights but not a volseg model",
            file=path,
            found=f"metadata keys: {', '.join(sorted(header)) or 'none'}",
            expected=f"a metadata key '{_KEY}'",
            hint=MODEL_HINT,
        )
    return _parse(header[_KEY], path)


def _document(metadata: Mapping[str, Any], path: Path) -> str:
    """Return the metadata as JSON, checked by :func:`_parse`."""
    try:
        text = json.dumps({**metadata, "format": FORMAT}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelFileError("the model's metadata cannot be written as JSON", file=path, found=error) from error
    _parse(text, path)
    return text


def _parse(text: str, path: Path) -> dict[str, Any]:
    document = parse_json(text, "model", path, ModelFileError)
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise _damaged(path, "metadata without a format number")
    if document["format"] > FORMAT:
        raise ModelFileError(
            "the model file was written by a newer volseg",
            file=path,
            found=f"format {document['format']}",
            expected=f"format {FORMAT} or lower",
            hint="update volseg",
        )
    unknown = sorted(set(document) - {"format", *_REQUIRED, *_OPTIONAL})
    invalid = [key for key in _REQUIRED if not isinstance(document.get(key), dict)]
    invalid += [key for key in _OPTIONAL if not isinstance(document.get(key, {}), dict)]
    if unknown or invalid:
        raise ModelFileError(
            "the model file's metadata is incomplete",
            file=path,
            found=f"unknown: {unknown}; missing or not a mapping: {invalid}",
            expected=f"{', '.join(_REQUIRED)}; optionally {', '.join(_OPTIONAL)}",
            hint=MODEL_HINT,
        )
    _check_labels(document["labels"], path)
    return {key: {} for key in _OPTIONAL} | document


def _check_labels(labels: dict[str, Any], path: Path) -> None:
    values = list(labels.values())
    whole = all(type(value) is int and 0 <= value <= LARGEST_LABEL for value in values)
    if not whole or len(set(values)) < len(values) or 0 not in values:
        raise ModelFileError(
            "the model file's labels are invalid",
            file=path,
            found=labels,
            expected=f"names with distinct integer values up to {LARGEST_LABEL}, 0 (background) among them",
        )


def _damaged(path: Path, found: object) -> ModelFileError:
    size, stated = path.stat().st_size, _stated_size(path)
    if stated is not None and size < stated:
        problem, hint = "the model file is shorter than its header says", "copy it again from its source"
        return ModelFileError(problem, file=path, found=f"{size} bytes", expected=f"{stated} bytes", hint=hint)
    return ModelFileError("the model file is damaged or not a volseg model", file=path, found=found, hint=MODEL_HINT)


def _stated_size(path: Path) -> int | None:
    """Return the size of the file by its header, or ``None`` if that is cut off or damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(length, path.stat().st_size)), "model", path, ModelFileError)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + int(max(ends, default=0))
    except (OSError, ModelFileError, AttributeError, LookupError, TypeError, ValueError):
        return None
