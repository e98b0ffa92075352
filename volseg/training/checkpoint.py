"""Checkpoints: the training state from which a run resumes bitwise identically on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from volseg.io.atomic import atomic_file
from volseg.io.torch_files import read_torch_file

FILE_NAME = "last.pt"
CHECKPOINTS = "checkpoint"
"""Folder of the checkpoint in the run folder."""


@dataclass
class RunProgress:
    """Progress of a run.

    Attributes:
        step: Finished optimizer steps.
        elapsed_s: Seconds of training and validation so far.
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


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is a checkpoint to resume from."""
    return (folder / FILE_NAME).exists()


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read ``folder/last.pt``. Only tensors and plain values are read, never code.

    Raises:
        ModelFileError: The file is missing or damaged.
    """
    hint = "delete the checkpoint folder to start anew"
    state: dict[str, Any] = read_torch_file(folder / FILE_NAME, "the checkpoint cannot be read", hint)
    return state
