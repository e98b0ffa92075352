"""The results of ``memory.py`` as Markdown and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from record import load, table

Record = dict[str, Any]
NAMES = {"volseg": "volseg", "monai": "MONAI SlidingWindowInferer"}
COLOURS = {"volseg": "#4c7df0", "monai": "#e8590c"}
TARGET_GIB = 3.0


def write_tables(folder: Path) -> str:
    """Write ``memory.md`` and ``memory.png`` from all records that are there; returns the text."""
    parts = {"length": "Length of the scan", "vit": "The default network"}
    sections = [
        f"## {title}\n\n{section(r)}" for part, title in parts.items() if (r := load(folder, f"memory_{part}_"))
    ]
    records = load(folder, "memory_")
    origins = sorted(
        {f"- {r['date'][:10]}, {r['hardware']['cpu']}, commit {(r['commit'] or 'unknown')[:10]}" for r in records}
    )
    text = "# Peak memory\n\n" + "\n\n".join(sections) + "\n\n" + NOTE + "\n".join(origins) + "\n"
    (folder / "memory.md").write_text(text, encoding="utf-8")
    lengths = load(folder, "memory_length_")
    if lengths:
        plot(lengths, folder / "memory.png")
    return text


NOTE = (
    "`above`: the process's peak above what it held before the call (interpreter, loaded model, the scan as stored), "
    "less the mask. GiB are 2^30 bytes. `stopped`: the process was ended when it grew past the limit, "
    "or asked for more than the machine has.\n\n"
    "Measured by `python benchmarks/memory.py`:\n\n"
)


def section(records: list[Record]) -> str:
    """A table of one part and what was measured."""
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
    window = " x ".join(map(str, first["window"]))
    text = (
        table(rows)
        + f"\n\nScans of n x {first['side']} x {first['side']} int16, {first['classes']} classes; {network}, "
    )
    text += f"token stride {first['stride']}, windows of {window}, overlap 0.5; volseg with a bound of "
    text += f"{bound:g} GB, MONAI with `sw_batch_size` 1."
    return f"{text} {growth(records)}".rstrip()


def growth(records: list[Record]) -> str:
    """The longest scan's peak against that of a quarter of it, as a sentence."""
    peaks = {r["settings"]["slices"]: r["result"]["above_bytes"] for r in records if r["settings"]["way"] == "volseg"}
    if not peaks or max(peaks) // 4 not in peaks:
        return ""
    longest, quarter = max(peaks), max(peaks) // 4
    change = 100 * (peaks[longest] / peaks[quarter] - 1)
    return f"volseg's peak at {longest} slices differs from that at {quarter} by {change:+.1f} %."


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.2f}"


def plot(records: list[Record], path: Path) -> None:
    """Peak against slices; a scan that was too long is an open triangle at the limit."""
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
