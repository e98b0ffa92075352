"""Checkpoints: damage is noticed, the predecessor takes over, and a full disk loses nothing."""

from __future__ import annotations

import errno
import logging
import random
import resource
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from volseg.errors import ModelFileError, OutputError
from volseg.io.checksums import ChecksumWriter
from volseg.training.checkpoint import Checkpoint, RunProgress, has_checkpoint, load_checkpoint, save_checkpoint


def made(step: int) -> Checkpoint:
    optimizer: dict[str, Any] = {"state": {0: {"step": torch.tensor(step)}}, "param_groups": [{"lr": 0.1}]}
    progress = RunProgress(step, 0.5 * step, 0.25, [torch.tensor(1.5), torch.tensor(0.1)], 1, ["step 3"])
    weights = {"weight": torch.full((30,), float(step))}
    return Checkpoint(
        model=weights,
        average=weights,
        average_updates=step,
        optimizer=optimizer,
        config={"seed": 3},
        progress=progress,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 4 and 8."""
    for step in (4, 8):
        save_checkpoint(tmp_path, made(step))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_whole(folder: Path) -> None:
    found = load_checkpoint(folder)
    assert found.progress == replace(made(8).progress, losses=found.progress.losses)
    assert torch.equal(torch.stack(found.progress.losses), torch.tensor([1.5, 0.1]))
    assert torch.equal(found.model["weight"], made(8).model["weight"])
    assert (found.average_updates, found.optimizer["param_groups"]) == (8, [{"lr": 0.1}])
    assert names(folder) == ["last.pt", "previous.pt"]
    assert torch.load(folder / "last.pt", weights_only=True)["progress"]["step"] == 8  # torch alone reads it too


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_is_noticed(folder: Path) -> None:
    whole = (folder / "last.pt").read_bytes()
    bits = random.Random(0).sample(range(8 * len(whole)), 100)
    bits += range(8 * (len(whole) - 60), 8 * len(whole), 7)  # the last line
    for bit in bits:
        (folder / "last.pt").write_bytes(flip(whole, bit))
        assert load_checkpoint(folder).progress.step == 4, bit


@pytest.mark.parametrize(
    ("damage", "step"),
    [
        (lambda whole: flip(whole, 3000), "step 8"),
        (lambda whole: whole[:-1], "step unknown"),
        (lambda whole: whole[: len(whole) // 2], "step unknown"),
        (lambda whole: b"", "step unknown"),
        (lambda whole: whole + b"\n", "step unknown"),
    ],
)
def test_the_predecessor_takes_over_with_a_notice(
    folder: Path, damage: Callable[[bytes], bytes], step: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "last.pt").write_bytes(damage((folder / "last.pt").read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(folder).progress.step == 4
    (record,) = caplog.records
    text = (
        f"{folder / 'last.pt'} ({step}) is damaged and was renamed to damaged.pt: resuming from previous.pt at step 4"
    )
    assert text in record.getMessage()
    assert names(folder) == ["damaged.pt", "previous.pt"]
    assert load_checkpoint(folder).progress.step == 4  # as after a second kill
    save_checkpoint(folder, made(6))
    assert names(folder) == ["last.pt", "previous.pt"]
    (folder / "last.pt").unlink()
    assert load_checkpoint(folder).progress.step == 4  # the damaged one never became the predecessor


def test_a_kill_between_the_two_renames_loses_one_checkpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "last.pt").unlink()
    assert has_checkpoint(folder)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(folder).progress.step == 4
    assert "last.pt is missing: resuming from previous.pt at step 4" in caplog.text


def test_two_damaged_checkpoints_are_an_error_with_a_hint(folder: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"not a checkpoint")
    with pytest.raises(ModelFileError, match=r"no checkpoint(.|\n)*last\.pt(.|\n)*previous\.pt(.|\n)*hint: delete"):
        load_checkpoint(folder)
    assert names(folder) == ["last.pt", "previous.pt"]
    (folder / "previous.pt").unlink()
    with pytest.raises(ModelFileError, match=r"last\.pt"):
        load_checkpoint(folder)
    (folder / "last.pt").unlink()
    assert not has_checkpoint(folder)
    with pytest.raises(ModelFileError, match=r"last\.pt"):
        load_checkpoint(folder)


PROGRESS = {"step": 3, "elapsed_s": 1.0, "best_dice": 0.5, "skipped": 0, "failures": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"progress": {"step": 3}}, "progress: "),
        ({"progress": 3}, "progress: int"),
        ({"progress": {**PROGRESS, "step": -1}}, r"progress\.step: int -1"),
        ({"progress": {**PROGRESS, "step": 3.0}}, r"progress\.step: float 3\.0"),
        ({"progress": {**PROGRESS, "step": True}}, r"progress\.step: bool"),
        ({"progress": {**PROGRESS, "elapsed_s": float("inf")}}, r"progress\.elapsed_s: float inf"),
        ({"progress": {**PROGRESS, "best_dice": "good"}}, r"progress\.best_dice: str good"),
        ({"progress": {**PROGRESS, "failures": [2]}}, r"progress\.failures: list"),
        ({"model": {"weight": [1.0]}}, r"model\.weight: list instead of a tensor"),
        ({"optimizer": {"state": {}}}, r"optimizer: \['state'\]"),
        ({"average_updates": None}, "average_updates: NoneType"),
        ({"losses": torch.tensor(1.0)}, "losses: Tensor"),
        ({"epoch": 3}, "the content: .*epoch"),
    ],
)
def test_a_file_with_other_content_is_an_error_that_names_the_key(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    (folder / "previous.pt").unlink()
    content = torch.load(folder / "last.pt", weights_only=True)
    with (folder / "last.pt").open("wb") as file:
        writer = ChecksumWriter(file)
        torch.save(content | change, writer)  # type: ignore[arg-type]
        start = b"\nvolseg checkpoint, step 000000000000008, crc32 "
        file.write(start + b"%08x\n" % zlib.crc32(start, writer.crc32))
    with pytest.raises(ModelFileError, match=f"something else(.|\n)*{message}"):
        load_checkpoint(folder)


def test_a_full_disk_is_an_output_error_and_the_old_checkpoints_stay(folder: Path) -> None:
    """The limit of the file size fails a write as a full disk does; torch's own writer would raise a RuntimeError."""
    large = replace(made(9), model={"weight": torch.zeros(200_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match=r"last\.pt(.|\n)*File too large"):
            save_checkpoint(folder, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(folder).progress.step == 8
    assert names(folder) == ["last.pt", "previous.pt"]


def test_a_failed_write_raises_at_once_or_at_the_end() -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    writer = ChecksumWriter(Full(), defer_errors=True)  # type: ignore[arg-type]
    torch.save({"weights": torch.arange(1000)}, writer)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    with pytest.raises(OSError, match="No space left"):  # a long computation whose result has no place ends at once
        ChecksumWriter(Full()).write(b"tokens")  # type: ignore[arg-type]
