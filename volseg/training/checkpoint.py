"""Checkpoints: the training state from which a run resumes bitwise identically on a CPU.

``last.pt`` is a file of `torch.save`, followed by a line with its step and checksum. ``previous.pt`` is the checkpoint
before it; a run resumes from there when ``last.pt`` is damaged or missing.
"""

from __future__ import annotations

import logging
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from volseg.errors import ModelFileError, OutputError
from volseg.io.atomic import atomic_file
from volseg.io.checksums import ChecksumWriter, read_crc32
from volseg.io.torch_files import read_torch_file

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoint"
"""Folder of the checkpoints in the run folder."""
FILE_NAME = "last.pt"
PREDECESSOR = "previous.pt"
DAMAGED = "damaged.pt"
"""A damaged ``last.pt``, until the next checkpoint is written."""
PROBLEM = "the checkpoint cannot be read"
HINT = "delete the checkpoint folder and start with --resume, which then starts anew"
LAST_LINE = re.compile(rb"\nvolseg checkpoint, step (\d{15}), crc32 ([0-9a-f]{8})\n")
LAST_LINE_BYTES = len(b"\nvolseg checkpoint, step , crc32 \n") + 15 + 8


@dataclass
class RunProgress:
    """Progress of a run.

    Attributes:
        step: Finished optimizer steps.
        elapsed_s: Seconds of training and validation so far.
        best_dice: Best mean validation Dice so far; -1 before the first validation.
        losses: Losses of the steps that no line of the log holds yet.
        skipped: Steps that were skipped so far, because loss or gradient was not finite.
        failures: One text for each of the last steps, if they were skipped.
    """

    step: int = 0
    elapsed_s: float = 0.0
    best_dice: float = -1.0
    losses: list[Tensor] = field(default_factory=list)
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """Return what describes a finished run, as plain values."""
        return {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best_dice": self.best_dice,
            "skipped": self.skipped,
        }


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run.

    Attributes:
        model: State of the network.
        average: State of the averaged network.
        average_updates: Number of updates of the average.
        optimizer: State of the optimizer.
        config: The configuration of the run, as plain values.
        progress: Progress of the run.
    """

    model: dict[str, Any]
    average: dict[str, Any]
    average_updates: int
    optimizer: dict[str, Any]
    config: dict[str, Any]
    progress: RunProgress


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``folder/last.pt`` atomically; the one before becomes ``folder/previous.pt``.

    Raises:
        OutputError: The file cannot be written; both checkpoints are as before.
    """
    last, progress = folder / FILE_NAME, checkpoint.progress
    losses = torch.stack(progress.losses).cpu() if progress.losses else torch.empty(0)
    content = {**vars(checkpoint), "progress": {**progress.numbers(), "failures": progress.failures}, "losses": losses}
    with atomic_file(last) as file:
        writer = ChecksumWriter(file, defer_errors=True)
        torch.save(content, cast("BinaryIO", writer))
        writer.close()
        file.write(_last_line(progress.step, writer.crc32))
        file.flush()
        os.fsync(file.fileno())  # the only good checkpoint is moved when the new one is on the disk
        if last.exists():
            last.replace(folder / PREDECESSOR)
    (folder / DAMAGED).unlink(missing_ok=True)


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is a checkpoint to resume from."""
    return any((folder / name).exists() for name in (FILE_NAME, PREDECESSOR))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read ``folder/last.pt``, or its predecessor where it is damaged. Tensors and plain values are read, never code.

    A damaged file is renamed, so that the next checkpoint does not replace the predecessor by it.

    Raises:
        ModelFileError: There is no checkpoint, or all are damaged.
        OutputError: A damaged file cannot be renamed.
    """
    last, previous = folder / FILE_NAME, folder / PREDECESSOR
    try:
        return read_checkpoint(last)
    except ModelFileError as damage:
        if not previous.exists():
            raise
        try:
            checkpoint = read_checkpoint(previous)
        except ModelFileError as error:
            raise ModelFileError(
                "no checkpoint of the run can be read", file=folder, found=f"{damage}\n{error}", hint=HINT
            ) from error
        _set_aside(last, damage, checkpoint.progress.step)
        return checkpoint


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        ModelFileError: The file is missing or damaged, or holds something else.
    """
    check_file(path)
    return _checked(read_torch_file(path, PROBLEM, HINT), path)


def check_file(path: Path) -> None:
    """Compare a checkpoint with the checksum in its last line.

    Raises:
        ModelFileError: The file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END) - LAST_LINE_BYTES
            file.seek(0)
            crc32, line = read_crc32(file, size), file.read()
    except OSError as error:
        raise ModelFileError(PROBLEM, file=path, found=error.strerror or error, hint=HINT) from error
    match = LAST_LINE.fullmatch(line)
    if match is None:
        found = "its last line, with step and checksum, is missing: the file is cut off, or of an earlier version"
        raise ModelFileError(PROBLEM, file=path, found=found, hint=HINT)
    if line != _last_line(int(match[1]), crc32):
        raise ModelFileError(PROBLEM, file=path, found="bytes that do not fit its checksum", hint=HINT)


def _last_line(step: int, crc32: int) -> bytes:
    start = b"\nvolseg checkpoint, step %015d, crc32 " % step
    return start + b"%08x\n" % zlib.crc32(start, crc32)


def _set_aside(path: Path, damage: ModelFileError, step: int) -> None:
    """Rename a damaged checkpoint and log which step is lost and which is resumed."""
    if not path.exists():
        logger.warning("%s is missing: resuming from %s at step %d", path, PREDECESSOR, step)
        return
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_LINE_BYTES))
        match = LAST_LINE.fullmatch(file.read())
    lost = f"step {int(match[1])}" if match else "step unknown"
    text = "%s (%s) is damaged and was renamed to %s: resuming from %s at step %d\n%s"
    try:
        path.replace(path.with_name(DAMAGED))
    except OSError as error:
        raise OutputError("a damaged checkpoint cannot be renamed", file=path, found=error.strerror) from error
    logger.warning(text, path, lost, DAMAGED, PREDECESSOR, step, damage)


def _checked(content: Any, path: Path) -> Checkpoint:
    """Return the content of a checkpoint; every key and type is checked.

    Raises:
        ModelFileError: A key is missing or unknown, or a value is of another type or out of range.
    """
    expected = {
        **dict.fromkeys(("model", "average", "optimizer", "config", "progress"), _is_mapping),
        "average_updates": _is_count,
        "losses": lambda value: isinstance(value, Tensor) and value.ndim == 1,
    }
    progress = {
        "step": _is_count,
        "elapsed_s": _is_seconds,
        "best_dice": _is_finite,
        "skipped": _is_count,
        "failures": _is_texts,
    }
    _check_keys(content, expected, path, "")
    _check_keys(content["progress"], progress, path, "progress.")
    for part in ("model", "average"):
        for name, value in content[part].items():
            if not isinstance(value, Tensor):
                raise _other_content(path, f"{part}.{name}", f"{type(value).__name__} instead of a tensor")
    _check_keys(content["optimizer"], {"state": _is_mapping, "param_groups": _is_list}, path, "optimizer.")
    losses = list(content.pop("losses").unbind())
    return Checkpoint(**{**content, "progress": RunProgress(**content["progress"], losses=losses)})


def _check_keys(content: Any, expected: Mapping[str, Any], path: Path, prefix: str) -> None:
    if not isinstance(content, dict) or content.keys() != expected.keys():
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise _other_content(path, prefix.rstrip(".") or "the content", f"{found} instead of {sorted(expected)}")
    for key, is_valid in expected.items():
        if not is_valid(content[key]):
            raise _other_content(path, prefix + key, f"{type(content[key]).__name__} {str(content[key])[:80]}")


def _other_content(path: Path, key: str, found: str) -> ModelFileError:
    return ModelFileError("the checkpoint holds something else", file=path, found=f"{key}: {found}", hint=HINT)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str | int) for key in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_seconds(value: Any) -> bool:
    return _is_finite(value) and value >= 0
