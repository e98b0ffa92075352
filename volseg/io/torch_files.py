"""Files written by torch, read without running code. Imports torch only when a file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from volseg.errors import ModelFileError


def read_torch_file(path: Path, problem: str, hint: str) -> Any:
    """Read a file written by `torch.save` onto the CPU: tensors and plain values only, code is never run.

    Args:
        path: The file.
        problem: First line of the error, for example "the checkpoint cannot be read".
        hint: How to fix it.

    Raises:
        ModelFileError: The file is missing or damaged, or holds something else.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch's unpickler raise errors of any kind
        # torch's own text describes its unpickler, or advises to run the code in the file
        damaged = f"not a file of tensors only, as torch.save writes it ({type(error).__name__})"
        found = error if isinstance(error, OSError) else damaged
        raise ModelFileError(problem, file=path, found=found, hint=hint) from error
