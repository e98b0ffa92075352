"""Files written by torch, read without running code. Imports torch only when a file is read."""

from __future__ import annotations

import mmap
import zipfile
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
        _check_claims(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch's unpickler raise errors of any kind
        # torch's own text describes its unpickler, or advises to run the code in the file
        damaged = f"not a file of tensors only, as torch.save writes it ({type(error).__name__})"
        found = error if isinstance(error, OSError) else damaged
        raise ModelFileError(problem, file=path, found=found, hint=hint) from error


def _check_claims(path: Path) -> None:
    """Check that a file of `torch.save` does not ask for more memory than it holds.

    Parts of an archive do if they are compressed, which torch never does. A pickle does if it calls ``bytearray`` with
    a number: torch lets that through, and no file of tensors and plain values needs it.

    Raises:
        ValueError: It does.
    """
    if not zipfile.is_zipfile(path):  # the format before torch 1.6
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            named = content.find(b"bytearray") >= 0
    else:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("the parts of the archive are compressed")
            named = any(b"bytearray" in archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    if named:
        raise ValueError("the pickle calls bytearray")
