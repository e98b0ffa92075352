"""``progress.png`` of a pretraining: losses, entropy, rank, and what the features know of a slice's position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.io.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS: dict[str, dict[str, str]] = {
    "loss": {"loss": "all", "loss_global": "global", "loss_local": "local", "loss_patch": "patches"},
    "entropy (nats)": {
        "teacher_entropy": "targets",
        "val_assignment_entropy": "assignments",
        "val_marginal_entropy": "mean assignment",
        "val_assignment_kl": "divergence",
    },
    "rank": {"val_rankme": "RankMe", "val_effective_rank": "centred"},
    "position error": {"val_position_error": "neighbours", "val_position_error_of_mean": "mean position"},
    "learning rate": {"lr": "_"},
}
"""Label of a panel -> keys of its lines with their names."""


def draw_pretraining(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of a ``metrics.jsonl`` and write the picture, atomically.

    Raises:
        OutputError: The picture cannot be written.
    """
    with atomic_file(path) as file:
        pretraining_figure(rows).savefig(file, format="png", dpi=110)


def pretraining_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return a figure with a panel for each of `PANELS`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 10), layout="constrained")
    panels = figure.subplots(len(PANELS), sharex=True, height_ratios=(3, 3, 2, 2, 1))
    for axes, (label, lines) in zip(panels, PANELS.items(), strict=True):
        for key, name in lines.items():
            _line(axes, rows, key, name)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize="small", ncols=2)
    panels[-1].set_xlabel("step")
    return figure


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, name: str) -> None:
    stated = [row for row in rows if key in row]
    marker = "o-" if key.startswith("val_") else "-"
    axes.plot([row["step"] for row in stated], [row[key] for row in stated], marker, label=name, markersize=3)
