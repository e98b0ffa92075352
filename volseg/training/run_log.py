"""What a run tells while it trains: a progress bar or plain lines, ``metrics.jsonl`` and ``progress.png``."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)


class RunLog:
    """Writes one JSON line per event and redraws the picture after each validation.

    Args:
        folder: Run folder.
        resume_step: Lines of later steps, from an interrupted run, are dropped.
        total_steps: For the progress bar; ``None`` when the run is limited by time.
    """

    def __init__(self, folder: Path, resume_step: int, total_steps: int | None) -> None:
        self._path = folder / "metrics.jsonl"
        self._picture = folder / "progress.png"
        self._rows = [row for row in read_metrics(self._path) if row["step"] <= resume_step]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in self._rows), encoding="utf-8")
        self._bar = tqdm(
            total=total_steps, initial=resume_step, unit="step", desc="train", disable=not sys.stderr.isatty()
        )

    def train(self, row: dict[str, Any]) -> None:
        """Record a training step: ``step, loss, lr, elapsed_s, step_s``."""
        self._write(row)
        self._say(f"step {row['step']}: loss {row['loss']:.4f}, lr {row['lr']:.2e}, {row['elapsed_s'] / 60:.1f} min")

    def validation(self, row: dict[str, Any]) -> None:
        """Record a validation: ``step, val_dice, val_hd95, val_cases, elapsed_s``."""
        self._write(row)
        self._say(
            f"step {row['step']}: validation Dice {row['val_dice']:.4f}, HD95 {row['val_hd95']:.2f} mm"
            f" ({row['val_cases']} cases)"
        )
        draw_progress(self._rows, self._picture)

    def advance(self, loss: float | None = None) -> None:
        """One step further on the progress bar."""
        self._bar.update()
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}")

    def close(self) -> None:
        """Finish the bar and draw the last picture."""
        self._bar.close()
        draw_progress(self._rows, self._picture)

    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _say(self, line: str) -> None:
        if self._bar.disable:
            logger.info(line)
        else:
            self._bar.write(line, file=sys.stderr)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: a damaged line was left out", path)
    return rows


def draw_progress(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss, validation Dice and learning rate over steps, as one picture."""
    from matplotlib.figure import Figure

    train = [row for row in rows if "loss" in row]
    val = [row for row in rows if "val_dice" in row]
    figure = Figure(figsize=(7, 6), layout="constrained")
    loss_axes, dice_axes, lr_axes = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1))
    loss_axes.plot([row["step"] for row in train], [row["loss"] for row in train], color="tab:blue")
    loss_axes.set_ylabel("training loss")
    dice_axes.plot([row["step"] for row in val], [row["val_dice"] for row in val], "o-", color="tab:green")
    dice_axes.set_ylabel("validation Dice")
    dice_axes.set_ylim(0, 1)
    lr_axes.plot([row["step"] for row in train], [row["lr"] for row in train], color="tab:gray")
    lr_axes.set_ylabel("learning rate")
    lr_axes.set_xlabel("step")
    for axes in (loss_axes, dice_axes, lr_axes):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
