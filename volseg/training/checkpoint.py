"""Training state on disk: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from volseg.errors import ModelFileError
from volseg.io.atomic import atomic_file

FILE_NAME = "last.pt"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Finished optimizer steps.
        elapsed_s: Seconds of training and validation consumed so far.
        best_dice: Best mean validation Dice so far; -1 before the first validation.
    """

    step: int = 0
    elapsed_s: float = 0.0
    best_dice: float = -1.0


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``folder/last.pt`` atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_file(folder / FILE_NAME) as file:
        torch.save(state, file)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read ``folder/last.pt``; ``None`` when there is none. Only tensors and plain values are read, never code.

    Raises:
        ModelFileError: The file is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelFileError(
            "the checkpoint cannot be read",
            file=path,
            found=str(error).splitlines()[0],
            mend="delete the checkpoint folder to start anew",
        ) from error
    return state
