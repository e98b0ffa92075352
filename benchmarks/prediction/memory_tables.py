"""Results of ``prediction_memory.py`` as Markdown and as a plot."""

from __future__ import annotations

from pathlib import Path

from shared.record import Record, load
from shared.text import origin_text, shape_text, table

NAMES = {"volseg": "volseg", "monai": "MONAI SlidingWindowInferer"}
COLOURS = {"volseg": "#4c7df0", "monai": "#e8590c"}
TARGET_GIB = 3.0


def write_tables(folder: Path) -> str:
    """Draw the plot of a folder's records and return the tables of all of them."""
    parts = {"length": "Length of the scan", "vit": "The default network"}
    sections = [f"## {title}\n\n{section(r)}" for part, title in parts.items() if (r := load(folder, f"{part}_"))]
    origins = "\n".join(sorted({f"- {origin_text(record)}" for record in load(folder)}))
    if lengths := load(folder, "length_"):
        plot(lengths, folder / "length.png")
    return "\n\n".join(["# Peak memory of prediction", *sections, NOTE + origins]) + "\n"


NOTE = (
    "`above`: the process's peak above its memory before the call (interpreter, loaded model, the scan as stored), "
    "minus the mask. GiB are 2^30 bytes. `stopped`: the process grew past the limit, or asked for more memory than "
    "the machine has.\n\n![Peak memory against slices](length.png)\n\n"
    "Measured by `python benchmarks/prediction_memory.py`:\n\n"
)


def section(records: list[Record]) -> str:
    """Return the table of one part and its conditions."""
    rows = [["slices", "tool", "above GiB", "scan GiB", "mask GiB", "whole process GiB", "encodings per slice", "s"]]
    for record in sorted(records, key=lambda r: (r["settings"]["slices"], -len(r["settings"]["way"]))):
        settings, result = record["settings"], record["result"]
        row = [str(settings["slices"]), NAMES[settings["way"]]]
        if result["stopped"]:
            rows.append([*row, "stopped", "", "", f"> {gib(result['process_bytes'])}", "", ""])
            continue
        sizes = [gib(result[key]) for key in ("above_bytes", "scan_bytes", "mask_bytes", "process_bytes")]
        encodings = result.get("counts", {}).get("encodings_per_slice")
        rows.append([*row, *sizes, "" if encodings is None else f"{encodings:.2f}", f"{result['seconds']:.0f}"])
    first = records[0]["settings"]
    bounds = (r["settings"]["max_memory_gb"] for r in records if r["settings"]["way"] == "volseg")
    bound = max(bounds, default=first["max_memory_gb"])
    network = ", ".join(f"{key} {value}" for key, value in first["network"].items())
    window = shape_text(first["window"])
    conditions = (
        f"Scans of n x {first['side']} x {first['side']} int16, {first['classes']} classes; {network}, token stride "
        f"{first['stride']}, windows of {window}, overlap 0.5; volseg with a limit of {bound:g} GB, MONAI with "
        f"`sw_batch_size` 1. {growth(records)}"
    )
    return f"{table(rows)}\n\n{conditions.rstrip()}"


def growth(records: list[Record]) -> str:
    """Return a sentence on the longest scan's peak against that of a scan of a quarter of its length."""
    peaks = {r["settings"]["slices"]: r["result"]["above_bytes"] for r in records if r["settings"]["way"] == "volseg"}
    if not peaks or max(peaks) // 4 not in peaks:
        return ""
    longest, quarter = max(peaks), max(peaks) // 4
    change = 100 * (peaks[longest] / peaks[quarter] - 1)
    return f"volseg's peak at {longest} slices differs from that at {quarter} by {change:+.1f} %."


def gib(size: float) -> str:
    """Return bytes in GiB."""
    return f"{size / 2**30:.2f}"


def plot(records: list[Record], path: Path) -> None:
    """Draw peak against slices; a stopped process is an open triangle at the limit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for way, name in NAMES.items():
        mine = sorted((r for r in records if r["settings"]["way"] == way), key=lambda r: r["settings"]["slices"])
        done = [r for r in mine if not r["result"]["stopped"]]
        points = [(r["settings"]["slices"], r["result"]["above_bytes"] / 2**30) for r in done]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[way], label=name)
        for record in (r for r in mine if r["result"]["stopped"]):
            at = record["settings"]["slices"], record["result"]["process_bytes"] / 2**30
            axes.plot(*at, "^", color=COLOURS[way], fillstyle="none", label=f"{name}: stopped")
    axes.axhline(TARGET_GIB, color="#888888", linestyle="--", linewidth=0.9, label=f"{TARGET_GIB:g} GiB")
    axes.set_xlabel("slices of the scan")
    axes.set_ylabel("peak above model, scan and mask, GiB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
