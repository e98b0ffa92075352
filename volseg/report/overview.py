"""The picture of a data set: shapes, spacings, values and class volumes; cases far from the others are named."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from volseg.errors import OutputError
from volseg.io.atomic import atomic_file
from volseg.io.paths import exists
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.quantities import Quantity, far_cases, quantities, smallest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USUAL, UPPER, FAR, INK = "#4c7df0", "#2f9e44", "#e8590c", "#212529"
MARK = b"volseg plan"
"""Text in the header of every picture, so that only pictures are replaced."""
WIDTH, DPI = 9.0, 100  # inches, and dots per inch
ROW, CHANNEL, AXIS, LINE = 0.24, 0.3, 0.62, 0.17  # inches: heights of a class, a channel, an axis' numbers, a text
COLUMNS, MOST_LINES = 125, 16
Array = NDArray[np.float64]


def write_overview(path: str | Path, fingerprint: Fingerprint) -> None:
    """Write the picture of a data set as PNG, atomically.

    Args:
        path: The file.
        fingerprint: The measured data set.

    Raises:
        OutputError: It cannot be written.
    """
    stream = io.BytesIO()
    draw_overview(fingerprint).savefig(stream, format="png", dpi=DPI, metadata={"Title": MARK.decode()})
    with atomic_file(path) as file:
        file.write(stream.getvalue())


def check_picture_replaceable(path: Path) -> None:
    """Check that a picture would replace nothing but a picture of a data set.

    Raises:
        OutputError: The path leads to something else.
    """
    if not exists(path):
        return
    try:
        with path.open("rb") as file:
            own = MARK in file.read(1024)
    except OSError:
        own = False
    if not own:
        hint = "choose another file for the plan; its picture is written beside it"
        raise OutputError("an existing file is no picture of a plan and is not replaced", file=path, hint=hint)


def draw_overview(fingerprint: Fingerprint) -> Figure:
    """Draw the picture as a matplotlib figure without pyplot, hence without global state."""
    from matplotlib.figure import Figure

    groups: dict[str, list[Quantity]] = {}
    for quantity in quantities(fingerprint):
        groups.setdefault(quantity.group, []).append(quantity)
    channels = [groups["values"][at : at + 2] for at in range(0, len(groups.get("values", ())), 2)]
    volumes, larger = smallest(groups["volume"])
    notes = _notes(fingerprint)
    heights = [3 * ROW, *([CHANNEL] * len(channels)), len(volumes) * ROW]
    height = 0.5 + sum(size + AXIS for size in heights) + LINE * (len(notes) + 1)
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    title = f"{fingerprint.dataset}: {fingerprint.size_text}"
    _write(figure, 0.15, height - 0.2, _short(title, 90), height, size=12)
    top = height - 0.45
    left = 0.3 + 0.075 * max(len(_short(one.name)) for one in volumes)
    for number, (name, unit) in enumerate((("voxels", ""), ("spacing", " (mm)"))):
        half = (number * WIDTH / 2 + 0.6, WIDTH / 2 - 0.9)
        axes = _axes(figure, half, top, heights[0], height)
        _strip(axes, groups[name], ["R", "A", "S"], name + unit, log=_is_wide(groups[name]))
    top -= heights[0] + AXIS
    for pair in channels:
        axes = _axes(figure, (left, WIDTH - left - 0.3), top, CHANNEL, height)
        channel = pair[0].name.partition(" of ")[2]
        label = "0.5 percentile (blue) and 99.5 percentile (green) of the values"
        _strip(axes, pair, [_short(channel)], label, same_row=True)
        top -= CHANNEL + AXIS
    axes = _axes(figure, (left, WIDTH - left - 0.3), top, heights[-1], height)
    names = [_short(one.name.removeprefix("volume of ")) for one in volumes]
    more = f"; {larger} larger not shown" if larger else ""
    _strip(axes, volumes, names, f"volume of each class (mL){more}", log=_is_wide(volumes))
    top -= heights[-1] + AXIS
    for number, line in enumerate(notes):
        _write(figure, 0.15, top - LINE * number, line, height, size=8.5, colour=FAR if number else INK)
    return figure


def _axes(figure: Figure, columns: tuple[float, float], top: float, size: float, height: float) -> Axes:
    """Return axes at a place in inches: left and width, upper end and height."""
    left, width = columns
    return figure.add_axes((left / WIDTH, (top - size) / height, width / WIDTH, size / height))


def _strip(
    axes: Axes,
    rows: Sequence[Quantity],
    names: Sequence[str],
    label: str,
    *,
    log: bool = False,
    same_row: bool = False,
) -> None:
    """Draw a row of points per quantity, the first on top; cases far from the others are orange."""
    for number, quantity in enumerate(rows):
        row = 0 if same_row else number
        heights = row + np.random.default_rng(0).uniform(-0.28, 0.28, len(quantity.values))
        far = quantity.far
        usual = UPPER if same_row and number else USUAL
        for selected, colour, alpha in ((~far, usual, 0.45), (far, FAR, 1.0)):
            axes.scatter(quantity.values[selected], heights[selected], s=9, color=colour, alpha=alpha, linewidths=0)
        if np.isfinite(quantity.values).any():
            axes.vlines(float(np.nanmedian(quantity.values)), row - 0.36, row + 0.36, colors=INK, linewidth=1.4)
    last = 0 if same_row else len(rows) - 1
    axes.set_ylim(last + 0.5, -0.5)
    texts = axes.set_yticks(range(last + 1)), axes.set_yticklabels(names[: last + 1])
    _number_axis(axes, np.concatenate([quantity.values for quantity in rows]), log=log)
    axes.set_xlabel(label, fontsize=9, color=INK)
    for text in (*texts[1], axes.xaxis.label):
        text.set_parse_math(False)
    axes.tick_params(labelsize=8.5, length=0, colors=INK)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_alpha(0.3)


def _number_axis(axes: Axes, values: Array, *, log: bool) -> None:
    """Scale the axis; a logarithmic one has numbers at 1, 2 and 5 times powers of ten, as many as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    measured = values[np.isfinite(values)]
    if not len(measured):
        return
    low, high = float(measured.min()), float(measured.max())
    middle = float(np.median(np.abs(measured)))
    is_wide = high > 20 * middle > 0
    numbers = FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}")
    if low <= 0 and is_wide:
        axes.set_xscale("asinh", linear_width=middle)
        powers = [10.0**power for power in range(math.ceil(math.log10(middle)), math.ceil(math.log10(high)))]
        axes.set_xticks([-value for value in powers if -value > 1.5 * low] + [0.0, *powers])
        axes.set_xlim(1.5 * low - 0.2 * middle, 1.5 * high)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(numbers)
        return
    if low <= 0 or not (log or is_wide):
        margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_xlim(low - margin, high + margin)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.25, high * 1.25)
    decades = np.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(numbers)


def _is_wide(rows: Sequence[Quantity]) -> bool:
    """Return whether values span more than a factor of 5."""
    values = np.concatenate([quantity.values for quantity in rows])
    return bool(np.nanmax(values, initial=1) > 5 * np.nanmin(values, initial=np.inf))


def _notes(fingerprint: Fingerprint) -> list[str]:
    """Return lines that name the cases far from the others."""
    lines = [line for text in far_cases(fingerprint) for line in textwrap.wrap(text, COLUMNS, subsequent_indent="    ")]
    if not lines:
        return ["No case is far from the others."]
    more = ["    ... volseg plan prints all of them"] if len(lines) > MOST_LINES else []
    return ["Far from the others (orange):", *lines[:MOST_LINES], *more]


def _short(name: str, length: int = 30) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _write(figure: Figure, x: float, y: float, text: str, height: float, *, size: float, colour: str = INK) -> None:
    """Write a line at a place in inches from the lower left corner."""
    figure.text(x / WIDTH, y / height, text, fontsize=size, color=colour, va="top", parse_math=False)
