"""Results of ``prediction_speed.py`` as Markdown and as a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shared.record import Record, load
from shared.text import origin_text, shape_text, table

EQUAL = ("largest difference of logits", "equal voxels of the mask")


def write_tables(folder: Path) -> str:
    """Draw the figure of a folder's records and return the tables of all of them."""
    sections = [section(records) for part, section in TABLES.items() if (records := load(folder, f"{part}_"))]
    origins = "\n".join(f"- {record['name']}: {origin_text(record)}" for record in load(folder))
    if windows := load(folder, "window_"):
        plot(windows, folder / "speed.png")
    measured = f"Measured by `python benchmarks/prediction_speed.py`:\n\n{origins}"
    return "\n\n".join(["# Speed of prediction", *sections, measured]) + "\n"


def window_table(records: list[Record]) -> str:
    """Return a row per network and mirroring: volseg beside MONAI's sliding window."""
    rows = [["network", "mirroring", "pairs", "volseg s", "MONAI s (batch)", "ratio", "ceiling", "encodings", *EQUAL]]
    for record in records:
        settings, result = record["settings"], record["result"]
        axes = settings.get("mirror_axes", [])
        name = settings["encoder"]
        if "volume" in settings:
            name += f", {shape_text(settings['volume'])}"
        rows.append(
            [
                name,
                f"{settings['mirror']} {axes}" if 0 < len(axes) < 3 else settings["mirror"],
                str(len(result["pairs"])),
                f"{result['ours_s']:.2f}",
                f"{result['monai_s']:.2f} ({settings['sw_batch_size']})",
                f"**{result['ratio']:.2f}**",
                f"{result['ceiling']:.2f}",
                f"{result['encoder_ratio']:.2f}",
                f"{result['max_difference']:.1e}",
                f"{100 * result['equal_voxels']:.4f} %",
            ]
        )
    return table(rows)


def windows_section(records: list[Record]) -> str:
    """Return the section of the window part."""
    settings = records[0]["settings"]
    return (
        f"## Against MONAI's SlidingWindowInferer\n\n{window_table(records)}\n\n"
        f"Same network, same preprocessed array; windows of {shape_text(settings['window'])}, token stride "
        f"{settings['token_stride']}, {settings['classes']} classes, overlap 0.5, Gaussian weights, float32. Medians "
        "over pairs; `mirroring all` is the mean over all eight flips. `encodings`: MONAI's slice encodings over "
        "volseg's. `ceiling`: the ratio if only encoder and decoder took time, from the counted encodings and "
        "decodings and the time of one of each in the same run; both decode equally often.\n\n![Speed](speed.png)"
    )


def hippocampus_section(records: list[Record]) -> str:
    """Return the section of the hippocampus part."""
    return (
        f"## Hippocampus: one window per case\n\n{window_table(records)}\n\n"
        "Another scan in every pair. With one window nothing is encoded twice; with mirroring only a flip along depth "
        "would save encodings, and the plan of this data set has none."
    )


def pipeline_section(records: list[Record]) -> str:
    """Return the section of the pipeline part."""
    stages = list(dict.fromkeys(stage for record in records for stage in record["result"]["seconds"]))
    rows = [["file", *(f"{stage} s" for stage in stages), "total s", "besides the network", "peak MB"]]
    for record in records:
        settings, result = record["settings"], record["result"]
        rows.append(
            [
                f"{shape_text(settings['shape'])}, {settings['stored_mm']:g} mm",
                *(f"{result['seconds'].get(stage, 0):.2f}" for stage in stages),
                f"{result['wall_s']:.1f}",
                f"**{100 * result['share_besides_network']:.1f} %**",
                f"{result['peak_rss_mb']:.0f}",
            ]
        )
    first = records[0]["settings"]
    return (
        f"## A CT of the trunk, {first['classes']} classes, network at {first['working_mm']:g} mm\n\n{table(rows)}\n\n"
        f"{first['encoder']}, windows of {shape_text(first['window'])}, token stride "
        f"{first['token_stride']}, no mirroring."
    )


def restore_section(records: list[Record]) -> str:
    """Return the section of the restore part."""
    rows = [["classes", "tool", "seconds", "ratio", "above the logits GB", "equal to the oracle"]]
    for record in sorted(records, key=lambda record: -record["settings"]["classes"]):
        settings, result = record["settings"], record["result"]
        for tool, name in (("ours", "volseg"), ("nnunet", "nnU-Net's export")):
            if f"{tool}_s" in result:
                ratio = f"**{result['ratio']:.1f}**" if tool == "ours" and "ratio" in result else ""
                cells = [str(settings["classes"]), name, f"{result[f'{tool}_s']:.2f}", ratio]
                cells += [f"{result[f'{tool}_above_bytes'] / 1e9:.2f}", f"{100 * result[f'{tool}_equal']:.4f} %"]
                rows.append(cells)
    settings, result = records[0]["settings"], records[0]["result"]
    return (
        f"## Restoring alone: {shape_text(settings['working'])} to {shape_text(settings['source'])}\n\n"
        f"{table(rows)}\n\n"
        f"Organ-like logits ({100 * result['foreground']:.0f} % foreground, {100 * result['border']:.1f} % of the "
        "working voxels beside another class), each run in a process of its own, medians. The oracle: linear "
        "interpolation of all logits, then argmax. Memory is the process's peak above its memory with the logits "
        "loaded, mask included."
    )


def shell_section(records: list[Record]) -> str:
    """Return the section of the shell part."""
    rows = [["command", "mirroring", "seconds", "nnU-Net / volseg"]]
    for record in records:
        seconds, ratio = record["result"]["seconds"], record["result"]["ratio"]
        for key, value in seconds.items():
            tool = "nnUNetv2_predict_from_modelfolder" if key.startswith("nnunet") else "tools/predict.py"
            name = tool if tool.startswith("nnU") else f"{tool}, {record['settings']['encoder']}"
            share = f"**{ratio[key]:.1f}**" if key in ratio else ""
            rows.append([f"`{name}`", "yes" if "mirrored" in key else "no", f"{value:.1f}", share])
    settings = records[0]["settings"]
    return (
        f"## From the shell, start-up included: {len(settings['cases'])} hippocampus cases\n\n{table(rows)}\n\n"
        "Medians. Mirrored: nnU-Net averages all eight flips, volseg the flips along the axes of its plan "
        f"({settings['mirror_axes']['ours']}), because the anatomy allows no others."
    )


def plot(records: list[Record], path: Path) -> None:
    """Draw ratio and ceiling of every record."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.7 * len(records)), layout="constrained")
    axes = figure.add_subplot()
    for row, record in enumerate(reversed(records)):
        result = record["result"]
        axes.barh(row, result["ceiling"], height=0.7, color="#d5dcec", label=None if row else "ceiling by counting")
        axes.barh(row, result["ratio"], height=0.4, color="#4c7df0", label=None if row else "measured")
        axes.text(result["ratio"], row, f" {result['ratio']:.2f}", va="center")
    names = [f"{r['settings']['encoder']}, mirroring {r['settings']['mirror']}" for r in reversed(records)]
    axes.set_yticks(range(len(records)), names)
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xlabel("times as fast as MONAI's SlidingWindowInferer")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)


TABLES: dict[str, Callable[[list[Record]], str]] = {
    "window": windows_section,
    "hippocampus": hippocampus_section,
    "pipeline": pipeline_section,
    "restore": restore_section,
    "shell": shell_section,
}
