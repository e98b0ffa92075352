"""Files of pretrained encoders: a ``.safetensors`` with the weights and how ``volseg pretrain`` made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.errors import ModelFileError
from volseg.io.atomic import atomic_file
from volseg.io.json_files import parse_json
from volseg.io.tensors import separate

if TYPE_CHECKING:
    from torch import Tensor

DAMAGED_HINT = "if it was downloaded, delete it and download it again"
_KEY = "volseg_pretraining"


def save_encoder(path: Path, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write the file of an encoder atomically.

    Args:
        path: Where to write.
        state: The encoder's ``state_dict``.
        record: How the weights were made, as plain values; see `pretraining_text`.

    Raises:
        OutputError: The file cannot be written.
    """
    from safetensors.torch import save

    content = save(separate(state), metadata={"format": "pt", _KEY: json.dumps(record)})
    with atomic_file(path) as file:
        file.write(content)


def read_entry(path: Path, key: str) -> str | None:
    """Return an entry of the metadata of a ``.safetensors`` file; ``None`` without one, and for other files.

    Raises:
        ModelFileError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get(key)
    except (SafetensorError, OSError) as error:
        raise ModelFileError("the weight file cannot be read", file=path, found=error, hint=DAMAGED_HINT) from error


def read_pretraining(path: Path) -> dict[str, Any] | None:
    """Return how the weights of a file were made, if ``volseg pretrain`` made them; no tensor is read.

    Raises:
        ModelFileError: The file or its record is damaged.
    """
    text = read_entry(path, _KEY)
    if text is None:
        return None
    record = parse_json(text, "pretraining", path, ModelFileError)
    if not isinstance(record, dict):
        raise ModelFileError("the record of the pretraining is damaged", file=path, found=str(record)[:80])
    return record


def pretraining_text(record: Mapping[str, Any]) -> str:
    """Return a record in one line: data, steps, objective and start."""
    data, command = record.get("data"), " ".join(map(str, record.get("command", ())))
    parts = f"{record.get('scans')} scans of {data}, {record.get('steps')} steps of {record.get('objective')}"
    return f"{parts}, from {record.get('start')} weights ({command})"
