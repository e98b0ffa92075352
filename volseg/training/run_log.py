"""The log of a training run: lines of text, ``metrics.jsonl`` and ``progress.png``."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.errors import OutputError, counted
from volseg.io.atomic import HINT, atomic_file
from volseg.training.loggers import tracked_numbers
from volseg.training.pace import duration
from volseg.training.progress_picture import draw_progress

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
SILENCE_S = 30.0
"""Seconds after which a line of text says that the run goes on."""


@dataclass(frozen=True)
class Validation:
    """How the log shows validations.

    Attributes:
        score: Key that their rows have; higher is better.
        text: Returns what the line of text says of a row.
        draw: Draws all rows and writes the picture.
    """

    score: str
    text: Callable[[Row], str]
    draw: Callable[[Sequence[Row], Path], None]


def _dice_text(row: Row) -> str:
    cases = counted(row["val_cases"], "case")
    return f"validation Dice {row['val_dice']:.4f}, HD95 {row['val_hd95']:.2f} mm ({cases})"


BY_DICE = Validation("val_dice", _dice_text, draw_progress)
"""Validations of segmentation: ``step, val_dice, val_hd95, val_dice_by_class, val_cases, elapsed_s``."""


class RunLog:
    """Write a JSON line and a log line for each event, and redraw the picture after each validation.

    Args:
        folder: Run folder.
        resume_step: Lines of later steps, from an interrupted run, are dropped.
        writes: Write the files; one of several processes does.
        tracker: Logger that gets a copy of every row.
        validation: How validations are shown.

    Raises:
        OutputError: A file cannot be written, here and in every method.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int,
        *,
        writes: bool = True,
        tracker: Logger | None = None,
        validation: Validation = BY_DICE,
    ) -> None:
        self._validation = validation
        self._path = folder / "metrics.jsonl"
        self._picture = folder / "progress.png"
        self._rows = [row for row in read_metrics(self._path, validation.score) if row["step"] <= resume_step]
        self._drawn = -1  # rows in the picture
        self._writes = writes
        self._tracker = tracker
        if writes:
            with atomic_file(self._path) as file:
                file.write("".join(json.dumps(row) + "\n" for row in self._rows).encode())
        self._last_line_s = time.monotonic()

    def train(self, row: dict[str, Any], pace: str) -> None:
        """Record a training step: ``step, loss, lr, skipped, elapsed_s, step_s``; the pace is for the line of text."""
        self._write(row)
        self.running(row, pace)

    def running(self, row: dict[str, Any], pace: str) -> None:
        """Write only the line of text of a training step."""
        elapsed = duration(row["elapsed_s"])
        skipped = f", {row['skipped']} skipped" if row["skipped"] else ""
        self._say(f"step {row['step']}: loss {row['loss']:.4f}, lr {row['lr']:.2e}{skipped}, {elapsed}, {pace}")

    def is_silent(self) -> bool:
        """Return whether there was no line of text for 30 seconds."""
        return time.monotonic() - self._last_line_s >= SILENCE_S

    def validating(self, done: int, total: int) -> None:
        """Write a line of text on the cases of a validation, if there was none for a while."""
        if self.is_silent():
            self._say(f"validation: {done} of {counted(total, 'case')}")

    def validation(self, row: dict[str, Any]) -> None:
        """Record a validation, with ``step``, the score, ``val_cases`` and ``elapsed_s``."""
        self._write(row)
        self._say(f"step {row['step']}: {self._validation.text(row)}")
        if self._writes:
            self._draw()

    def is_validated(self, step: int) -> bool:
        """Return whether there is a validation of a step."""
        return any(row["step"] == step and self._validation.score in row for row in self._rows)

    def without_improvement(self) -> int:
        """Return how many validations there were since the best one; those of other cases do not count."""
        score = self._validation.score
        rows = [row for row in self._rows if score in row]
        values = [row[score] for row in rows if row.get("val_cases") == rows[-1].get("val_cases")]
        scores = [-1.0 if math.isnan(value) else value for value in values]
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def close(self) -> None:
        """Draw the last picture and close the tracker."""
        self._draw()
        if self._tracker is not None:
            self._tracker.finalize("success")

    def _draw(self) -> None:
        if self._drawn != len(self._rows):
            self._validation.draw(self._rows, self._picture)
            self._drawn = len(self._rows)

    def _say(self, text: str) -> None:
        logger.info("%s", text)
        self._last_line_s = time.monotonic()

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if not self._writes:
            return
        with _output_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._tracker is not None:
            self._tracker.log_metrics(tracked_numbers(row), row["step"])


def read_metrics(path: Path, score: str = BY_DICE.score) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl``; damaged lines, such as one cut off by a crash, are skipped.

    Args:
        path: The file; nothing if it does not exist.
        score: Key of the rows of validations.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row["step"]) is not int or not _is_complete(row, score):
                raise ValueError
            rows.append(row)
        except (ValueError, KeyError, RecursionError):
            logger.warning("%s: a damaged line was skipped", path)
    return rows


def _is_complete(row: Row, score: str) -> bool:
    """Return whether a row has the numbers that the picture shows."""
    numbers = [row[name] for name in ("loss", "lr", score) if name in row]
    plain = all(type(value) in (int, float) for value in numbers)
    return plain and (score in row or {"loss", "lr"} <= row.keys())


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Name the file that cannot be written, for example because the disk is full.

    Raises:
        OutputError: Instead of `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise OutputError("the log of the run cannot be written", file=path, found=error.strerror, hint=HINT) from error
