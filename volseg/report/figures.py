"""Pictures of single cases: contours of reference and prediction on three planes of the image, and scores."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volseg.errors import counted
from volseg.io.label_table import Rgb, label_colour
from volseg.metrics.table import HEADLINE, ClassScores, Metric
from volseg.report.planes import CaseViews, View
from volseg.report.tables import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BACKGROUND, _TEXT, _FAINT = "#101317", "#e9ecef", "#98a1ab"
_ROWS = 12  # classes listed next to a picture
_HEIGHT_INCHES = 3.4

Classes = Mapping[str, Sequence[int]]


def case_png(
    views: CaseViews, classes: Classes, scores: Mapping[str, ClassScores], *, modality: str, title: str = ""
) -> bytes:
    """Draw one case as PNG.

    The slices go through the block with the most wrong voxels, in radiological convention (patient's right on the
    left). The reference is a thick pale line, the prediction a thin one.

    Args:
        views: The slices.
        classes: Class name -> label values.
        scores: Scores of the classes, from ``case_scores``.
        modality: ``ct`` shows -160 to 240 HU, ``mri`` the 1st to 99.5th percentile of the nonzero voxels.
        title: Text above the picture.
    """
    stream = io.BytesIO()
    figure = draw_case(views, classes, scores, modality=modality, title=title)
    figure.savefig(stream, format="png", dpi=110, facecolor=BACKGROUND)
    return stream.getvalue()


def draw_case(
    views: CaseViews, classes: Classes, scores: Mapping[str, ClassScores], *, modality: str, title: str = ""
) -> Figure:
    """Draw one case as a matplotlib figure without pyplot, hence without global state; see :func:`case_png`."""
    from matplotlib.figure import Figure

    widths = [_HEIGHT_INCHES * view.aspect for view in views.planes]
    table_width = 4.2
    figure = Figure(figsize=(sum(widths) + table_width, _HEIGHT_INCHES + 0.5), facecolor=BACKGROUND)
    layout = figure.add_gridspec(
        1, 4, width_ratios=[*widths, table_width], left=0.01, right=0.99, bottom=0.02, top=0.88, wspace=0.04
    )
    figure.suptitle(title, color=_TEXT, x=0.01, y=0.985, ha="left", fontsize=11, parse_math=False)
    colours = class_colours(classes)
    for number, view in enumerate(views.planes):
        _draw_plane(figure.add_subplot(layout[number]), view, classes, colours, views.window(modality))
    _draw_scores(figure.add_subplot(layout[3]), colours, scores)
    return figure


def class_colours(classes: Classes) -> dict[str, Rgb]:
    """Return the colour of each class: that of its first label value in written masks, if no other class has it."""
    firsts = [min(values) for values in classes.values()]
    keys = firsts if len(set(firsts)) == len(firsts) else range(1, len(firsts) + 1)
    return {name: label_colour(key) for name, key in zip(classes, keys, strict=True)}


def _draw_plane(
    axes: Axes, view: View, classes: Classes, colours: Mapping[str, Rgb], window: tuple[float, float]
) -> None:
    axes.set_title(view.name, color=_FAINT, fontsize=10.5, pad=3)
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    bottom, left = view.extent_mm
    extent = (0.0, left, 0.0, bottom)
    if view.image is not None:
        low, high = window
        axes.imshow(view.image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    for name, values in classes.items():
        _draw_contour(axes, np.isin(view.reference, values), view, colours[name], width=3.4, alpha=0.5)
        _draw_contour(axes, np.isin(view.prediction, values), view, colours[name], width=1.0, alpha=1.0)
    axes.set_xlim(0, left)
    axes.set_ylim(0, bottom)
    axes.set_aspect("equal")


def _draw_contour(
    axes: Axes, inside: NDArray[np.bool_], view: View, colour: Rgb, *, width: float, alpha: float
) -> None:
    if not inside.any():
        return
    closed = np.pad(inside, 1).astype(float)  # contours close at the edge of the picture
    rows, columns = (
        (np.arange(n + 2) - 0.5) * length / n for n, length in zip(inside.shape, view.extent_mm, strict=True)
    )
    heights = view.extent_mm[0] - rows  # rows run downwards
    axes.contour(columns, heights, closed, levels=[0.5], colors=[colour], linewidths=width, alpha=alpha)


def _draw_scores(axes: Axes, colours: Mapping[str, Rgb], scores: Mapping[str, ClassScores]) -> None:
    """Draw the table next to the planes; if there are too many classes, those of the lowest Dice."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(-_ROWS - 2.5, 0.5)
    right_edges = [1.0 - 0.2 * column for column in reversed(range(len(HEADLINE)))]
    for edge, metric in zip(right_edges, HEADLINE, strict=True):
        axes.text(edge, 0, metric.column_title, color=_FAINT, fontsize=9.5, ha="right", va="center")
    names = [name for name in colours if scores[name]["status"] != "both_empty"]
    shown = names if len(names) <= _ROWS else sorted(names, key=lambda name: scores[name]["dice"])[:_ROWS]
    for row, name in enumerate(shown, start=1):
        axes.plot([0.0, 0.035], [-row, -row], color=colours[name], linewidth=3, solid_capstyle="butt")
        cells = [
            axes.text(edge, -row, _cell(metric, scores[name]), color=_TEXT, fontsize=10.5, ha="right", va="center")
            for edge, metric in zip(right_edges, HEADLINE, strict=True)
        ]
        label = axes.text(0.055, -row, name, color=_TEXT, fontsize=10.5, va="center", parse_math=False)
        _shorten(label, cells[0])
    rest = len(names) - len(shown)
    if rest:
        axes.text(0.0, -len(shown) - 1, f"and {counted(rest, 'better class')}", color=_FAINT, fontsize=9.5, va="center")
    bottom = -_ROWS - 2
    axes.plot([0.0, 0.08], [bottom, bottom], color=_TEXT, linewidth=3.4, alpha=0.5)
    axes.text(0.1, bottom, "reference", color=_FAINT, fontsize=9.5, va="center")
    axes.plot([0.42, 0.5], [bottom, bottom], color=_TEXT, linewidth=1.0)
    axes.text(0.52, bottom, "prediction", color=_FAINT, fontsize=9.5, va="center")


def _cell(metric: Metric, scores: ClassScores) -> str:
    """Return the text of a score; the status replaces the distance of a missed or spurious class."""
    if metric.one_empty == "diagonal" and scores["status"] != "ok":
        return str(scores["status"])
    return number_text(scores[metric.name], metric.digits)


def _shorten(label: Text, neighbour: Text) -> None:
    """Shorten a class name until it ends before the number to its right."""
    name = label.get_text()
    limit = neighbour.get_window_extent().x0 - 4  # pixels
    for length in range(len(name) - 1, 0, -1):
        if label.get_window_extent().x1 <= limit:
            return
        label.set_text(name[:length] + "…")
