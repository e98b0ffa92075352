"""Results of ``metrics_speed.py`` as Markdown and as a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metrics.libraries import COMPUTES, SHARED, TOOLS
from shared.text import origin_text, shape_text, table
from volseg.metrics.table import METRIC


def plot(volumes: list[dict[str, Any]], classes: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds against voxels and classes, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = ((volumes, "voxels", "voxels (same five organs)"), (classes, "classes", "classes (same volume)"))
    for axes, (rows, key, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for tool, colour in (("volseg", "#4c7df0"), ("monai", "#e8590c")):
            axes.loglog([row[key] for row in rows], [row[tool] for row in rows], "o-", color=colour, label=tool)
        axes.set_xlabel(label)
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
        axes.legend(title="volseg: all scores; monai: HD95")
    figure.savefig(path, dpi=130)


def write_tables(folder: Path) -> str:
    """Draw the plot of a folder's records and return the tables of all parts measured so far."""
    records = {p: json.loads(f.read_text("utf-8")) for p in TABLES if (f := folder / f"{p}.json").exists()}
    sections = [TABLES[part](record["result"]) for part, record in records.items()]
    origins = "\n".join(f"- {part}: {origin_text(record)}" for part, record in records.items())
    sections.append(f"Measured by `python benchmarks/metrics_speed.py`:\n\n{origins}")
    if "scaling" in records:
        result = records["scaling"]["result"]
        plot(result["volume"], result["classes"], folder / "scaling.png")
    return "# Metrics\n\n" + "\n\n".join(sections) + "\n"


def pairs_table(rows: list[dict[str, Any]]) -> str:
    """Return seconds, ratios and differences over the pairs."""
    lines = [["tool", "computes", "median s", "ratio to volseg: median (lowest)", "largest difference"]]
    for tool in [tool for tool in TOOLS if tool in rows[0]["seconds"]]:
        ratios = [row["seconds"][tool] / row["seconds"]["volseg"] for row in rows]
        ratio = "1" if tool == "volseg" else f"{statistics.median(ratios):.1f} ({min(ratios):.1f})"
        worst: dict[str, float] = {}
        for row in rows:
            for name, value in row["max_difference"].get(tool, {}).items():
                worst[name] = max(value, worst.get(name, 0.0))
        text = ", ".join(f"{name} {value:.1e}" for name, value in worst.items()) or "–"
        seconds = statistics.median(row["seconds"][tool] for row in rows)
        lines.append([tool, COMPUTES[tool], f"{seconds:.2f}", ratio, text])
    sizes = f"{min(rows[0]['voxels']):,} to {max(rows[0]['voxels']):,} voxels"
    return f"## {len(rows)} pairs, {len(rows[0]['voxels'])} organs of {sizes}\n\n{table(lines)}"


def traps_table(rows: list[dict[str, Any]]) -> str:
    """Return the predictions that are slow for search trees."""
    lines = [["prediction", "volseg s", "two distance transforms s", "MONAI s", "difference of HD95 mm"]]
    for row in rows:
        seconds = [f"{row['seconds'][tool]:.2f}" for tool in ("volseg", "distance transforms", "monai")]
        lines.append([row["name"], *seconds, f"{row['max_difference']:.1e}"])
    return f"## Predictions that are slow for search trees\n\n{table(lines)}"


def large_table(row: dict[str, Any]) -> str:
    """Return the whole-body map."""
    size = shape_text(row["shape"])
    head = ["voxels", "classes", "seconds", "both masks MB", "peak MB of the process", "peak / masks"]
    cells = [size, str(row["classes"]), f"{row['seconds']:.1f}", f"{row['masks_mb']:.0f}", f"{row['peak_mb']:.0f}"]
    return "## A large map\n\n" + table([head, [*cells, f"{row['peak_over_masks']:.1f}"]])


def scaling_table(result: dict[str, Any]) -> str:
    """Return cost against the size of the volume and the number of classes."""
    parts = []
    for title, rows in (("size of the volume", result["volume"]), ("number of classes", result["classes"])):
        lines = [["voxels", "classes", "volseg s", "MONAI s (HD95)"]]
        lines += [[f"{r['voxels']:,}", str(r["classes"]), f"{r['volseg']:.3f}", f"{r['monai']:.3f}"] for r in rows]
        parts.append(f"## Cost against the {title}\n\n{table(lines)}")
    return "\n\n".join(parts) + "\n\n![Cost](scaling.png)"


def empty_table(result: dict[str, dict[str, dict[str, str]]]) -> str:
    """Return the values of every tool for empty masks."""
    titles = " / ".join(METRIC[name].title for name in SHARED)
    lines = [["situation", *(f"{tool}: {titles}" for tool in TOOLS)]]
    for name, tools in result.items():
        lines.append([name, *(" / ".join(tools[tool].values()) for tool in TOOLS)])
    note = "A mean skips nan: with MONAI, a missed organ does not change the mean of HD95."
    return f"## Empty masks\n\n{table(lines)}\n\n{note}"


TABLES: dict[str, Callable[[Any], str]] = {
    "pairs": pairs_table,
    "traps": traps_table,
    "large": large_table,
    "scaling": scaling_table,
    "empty": empty_table,
}
