"""``progress.png``: loss, validation Dice per class, learning rate and time of a step over the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.io.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 10
"""Classes with a colour and a name of their own; of more, all lines are grey."""
BY_CLASS = "val_dice_by_class"


def draw_progress(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of a ``metrics.jsonl`` and write the picture, atomically.

    Raises:
        OutputError: The picture cannot be written.
    """
    with atomic_file(path) as file:
        progress_figure(rows).savefig(file, format="png", dpi=110)


def progress_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return a figure with four panels; rows of earlier versions may lack the time of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 8), layout="constrained")
    loss_axes, dice_axes, lr_axes, time_axes = figure.subplots(4, sharex=True, height_ratios=(3, 4, 1, 1))
    _line(loss_axes, rows, "loss", "tab:blue", "training loss")
    _dice_lines(dice_axes, [row for row in rows if "val_dice" in row])
    _line(lr_axes, rows, "lr", "tab:gray", "learning rate")
    _line(time_axes, rows, "step_s", "tab:gray", "s per step")
    time_axes.set_ylim(bottom=0)
    time_axes.set_xlabel("step")
    for axes in (loss_axes, dice_axes, lr_axes, time_axes):
        axes.grid(alpha=0.3)
    return figure


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str, label: str) -> None:
    stated = [row for row in rows if key in row]
    axes.plot([row["step"] for row in stated], [row[key] for row in stated], color=colour)
    axes.set_ylabel(label)


def _dice_lines(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw a thin line per class and the mean; a class without a score in a validation has a gap there."""
    names = list(dict.fromkeys(name for row in rows for name in row.get(BY_CLASS, {})))
    steps = [row["step"] for row in rows]
    for number, name in enumerate(names):
        dice = [row.get(BY_CLASS, {}).get(name, float("nan")) for row in rows]
        named = len(names) <= MOST_NAMED
        colour, label = (f"C{number}", name) if named else ("lightgray", "_")
        axes.plot(steps, dice, "o-", color=colour, label=label, linewidth=1, markersize=3)
    axes.plot(steps, [row["val_dice"] for row in rows], "o-", color="black", label="mean", linewidth=1.8, markersize=4)
    axes.set_ylabel("validation Dice")
    axes.set_ylim(0, 1)
    if 1 < len(names) <= MOST_NAMED:
        legend = axes.legend(fontsize="small", ncols=2)
        for text in legend.get_texts():
            text.set_parse_math(False)
