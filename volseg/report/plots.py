"""Plots of score distributions and paired differences, as SVG in the text colour of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volseg.evaluation.results import Evaluation
from volseg.metrics.table import METRIC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD_COLOURS = ("#4c7df0", "#e8590c", "#2f9e44", "#ae3ec9", "#0c8599", "#e64980", "#f08c00", "#868e96")
_INK = "#010203"  # placeholder for the page's text colour
_MANY_POINTS = 5000  # above this, only boxes: points would overlap and the file would be large
Array = NDArray[np.float64]


def distribution_svg(evaluation: Evaluation, metric: str) -> str:
    """Draw a box and the cases per class and method; crosses are missed or spurious."""
    classes, methods = evaluation.classes, evaluation.methods
    figure, axes = _figure(len(classes) * (0.16 + 0.2 * len(methods)), classes)
    tables = [evaluation.values(method, metric) for method in methods]
    for number, (method, values) in enumerate(zip(methods, tables, strict=True)):
        colour = METHOD_COLOURS[number % len(METHOD_COLOURS)]
        offset = (number - (len(methods) - 1) / 2) * 0.72 / len(methods)
        positions: Array = np.arange(len(classes), dtype=np.float64) + offset
        _boxes(axes, values, positions, colour, 0.5 / len(methods))
        ok = evaluation.statuses(method) == "ok"
        if values.size * len(methods) <= _MANY_POINTS:
            _points(axes, values, ok, positions, colour, marker="o")
        _points(axes, values, ~ok & ~np.isnan(values), positions, colour, marker="x")
    if not METRIC[metric].is_overlap:
        _distance_axis(axes, max(float(np.nanmax(np.nan_to_num(values))) for values in tables))
    else:
        axes.set_xlim(-0.02, 1.02)
    _finish(axes, classes, METRIC[metric].axis_title)
    return _svg(figure, f"distribution-{metric}")


def difference_svg(evaluation: Evaluation, comparison: Mapping[str, Any]) -> str:
    """Draw the paired differences of one metric: every case, and the mean with its interval."""
    a, b, metric = comparison["a"], comparison["b"], comparison["metric"]
    difference = evaluation.values(a, metric) - evaluation.values(b, metric)
    figure, axes = _figure(len(evaluation.classes) * 0.3, evaluation.classes)
    axes.axvline(0, color=_INK, linewidth=0.8, alpha=0.5)
    for row, paired in enumerate(comparison["classes"].values()):
        defined = difference[~np.isnan(difference[:, row]), row]
        if difference.size <= _MANY_POINTS:
            axes.scatter(defined, row + _jitter(len(defined)), s=9, color=METHOD_COLOURS[0], alpha=0.45, linewidths=0)
        if paired["mean_difference"] is not None:
            axes.plot([paired["mean_difference"]], [row], marker="D", color=_INK, markersize=4)
        if paired["ci95"][0] is not None:
            axes.plot(paired["ci95"], [row, row], color=_INK, linewidth=1.6)
    better = "right" if comparison["higher_is_better"] else "left"
    _finish(axes, evaluation.classes, f"{METRIC[metric].axis_title}: {a} − {b}   ({a} better to the {better})")
    return _svg(figure, f"difference-{a}-{b}-{metric}")


def _figure(height: float, classes: Sequence[str]) -> tuple[Figure, Axes]:
    """Return an empty plot of a height in inches, with room for the class names on the left."""
    from matplotlib.figure import Figure

    width, below, above = 8.2, 0.5, 0.1
    left = 0.2 + 0.075 * max(len(_short(name)) for name in classes)
    total = height + below + above
    figure = Figure(figsize=(width, total))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((left / width, below / total, (width - left - 0.2) / width, height / total))
    axes.patch.set_alpha(0)
    return figure, axes


def _short(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"


def _jitter(count: int) -> Array:
    """Return small shifts that separate the points; a fixed seed makes the plots reproducible."""
    return np.asarray(np.random.default_rng(0).uniform(-0.1, 0.1, count))


def _boxes(axes: Axes, values: Array, positions: Array, colour: str, height: float) -> None:
    """Draw, per class, quartiles, median and whiskers to the farthest value within 1.5 interquartile ranges (Tukey)."""
    defined = ~np.isnan(values).all(axis=0)
    values, positions = values[:, defined], positions[defined]
    if not len(positions):
        return
    low, middle, high = np.nanpercentile(values, [25, 50, 75], axis=0)
    near = (values >= low - 1.5 * (high - low)) & (values <= high + 1.5 * (high - low))
    inner = np.where(near, values, np.nan)
    whiskers = np.nanmin(inner, axis=0), np.nanmax(inner, axis=0)
    axes.barh(positions, high - low, height, low, facecolor=colour + "30", edgecolor=colour, linewidth=1.2)
    axes.hlines([*positions, *positions], [*whiskers[0], *high], [*low, *whiskers[1]], colors=colour, linewidth=1.2)
    axes.vlines(middle, positions - height / 2, positions + height / 2, colors=colour, linewidth=2.4)


def _points(
    axes: Axes, values: Array, selected: NDArray[np.bool_], positions: Array, colour: str, *, marker: str
) -> None:
    """Draw the selected cases as points."""
    heights = positions + 0.6 * _jitter(len(values))[:, None]
    size, alpha, line = (8, 0.5, 0.0) if marker == "o" else (18, 1.0, 1.1)
    axes.scatter(values[selected], heights[selected], s=size, alpha=alpha, linewidths=line, color=colour, marker=marker)


def _distance_axis(axes: Axes, highest: float) -> None:
    """Scale an axis of mm from 0; logarithmic above 1 if the highest distance exceeds 50."""
    if highest > 50:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= highest]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    axes.set_xlim(left=0)


def _finish(axes: Axes, classes: Sequence[str], label: str) -> None:
    """Set class names on the left, the first class on top, and a plain frame."""
    axes.set_yticks(range(len(classes)))
    names = axes.set_yticklabels([_short(name) for name in classes])
    axes.set_ylim(len(classes) - 0.4, -0.6)
    title = axes.set_xlabel(label)
    for text in (*names, title):
        text.set_parse_math(False)
    axes.grid(axis="x", color=_INK, alpha=0.12, linewidth=0.8)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.xaxis.label.set_color(_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.spines["bottom"].set_alpha(0.3)


def _svg(figure: Figure, salt: str) -> str:
    """Return the ``<svg>`` element, with unique ids and the page's text colour."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    prefix = re.sub(r"\W+", "-", salt)
    text = re.sub(r'\b(id="|url\(#|href="#)', lambda match: f"{match[1]}{prefix}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
