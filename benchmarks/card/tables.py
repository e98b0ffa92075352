"""The page of ``gpu.py``, from its record alone."""

from __future__ import annotations

from collections.abc import Callable

from shared.record import Record
from shared.text import shape_text, table
from training.compare_tables import overview
from training.comparison import models_of

Rows = list[Record]
MOST_DIGITS = 3
STAGES = ("read", "prepare", "network", "restore", "postprocess", "write")


def markdown(record: Record) -> str:
    """Return the page: a table per section, with what went wrong, and the conditions."""
    parts = [
        "# volseg on a GPU"
        if record["device"].startswith("cuda")
        else f"# The benchmark of a GPU on {record['device']}"
    ]
    for name, section in record["sections"].items():
        title, tables, note = SECTIONS[name]
        parts.append(f"## {title}")
        if section["rows"]:
            parts.append(tables(section["rows"]))
        if section["error"]:
            parts.append(f"**Not complete:** {' '.join(section['error'].split())}")
        parts.append(f"{note} {section['seconds']:.0f} s in all.".strip())
    return "\n\n".join([*parts, conditions(record)]) + "\n"


def conditions(record: Record) -> str:
    """Return the machine, the versions and the command."""
    machine, versions = record["hardware"], record["versions"]
    where = f"{machine['gpu']}, {machine['cpu']}" if record["device"].startswith("cuda") else machine["cpu"]
    command, commit = " ".join(record["command"]), str(record["commit"])[:10]
    return (
        f"{where}, {record['cores']} cores, torch {versions['torch']}, MONAI {versions['monai']}, sizes "
        f"`{record['size']}`; {record['date'][:10]}, commit {commit}: `{command}`"
    )


def sliding(rows: Rows) -> str:
    """Return the network over a volume, by volseg and by MONAI."""
    head = ["encoder", "precision", "flips", "volseg, s", "MONAI, s", "MONAI / volseg", "sw_batch_size"]
    head += ["kernels, volseg", "kernels, MONAI", "largest difference", "equal voxels"]
    lines = [
        [
            row["encoder"], row["precision"], str(row["flips"]), number(row["volseg_s"]), number(row["monai_s"]),
            f"{row['ratio']:.2f}", str(row["sw_batch_size"]), percent(row["volseg_busy"]), percent(row["monai_busy"]),
            f"{row['max_difference']:.1e}", f"{row['equal_voxels']:.4%}",
        ]
        for row in rows
    ]  # fmt: skip
    return table([head, *lines])


def scan(rows: Rows) -> str:
    """Return the stages of a whole scan."""
    lines = [["", *(row["way"] for row in rows)]]
    lines.append(["window", *(shape_text(row["window"]) for row in rows)])
    lines += [[f"{stage}, s", *(number(row["seconds"].get(stage)) for row in rows)] for stage in STAGES]
    lines.append(["all stages, s", *(number(row["stages_s"]) for row in rows)])
    lines.append(["wall time, s", *(number(row["wall_s"]) for row in rows)])
    lines.append(["share besides the network", *(percent(row["share_besides_network"]) for row in rows)])
    lines.append(["peak of the host, MB", *(whole(row["peak_rss_mb"]) for row in rows)])
    lines.append(["peak of the device, MB", *(whole(row["peak_device_mb"]) for row in rows)])
    first = rows[0]
    voxels, encoder = shape_text(first["voxels"]), first["encoder"]
    return f"{table(lines)}\n\n{voxels} voxels, {first['classes']} classes; volseg's encoder is {encoder}."


def steps(rows: Rows) -> str:
    """Return training, a row per network."""
    head = ["network", "precision", "patch, batch", "samples/s", "step, ms", "kernels, ms", "kernels / step"]
    head += ["waiting for batches", "peak of the device, MB", "estimate, MB"]
    lines = [
        [
            row["network"], row["precision"], f"{shape_text(row['patch'])}, {row['batch']}",
            f"{row['samples_per_s']:.1f}", number(row["step_ms"]), number(row["kernel_ms"]), percent(row["busy"]),
            percent(row["waiting"]), whole(row["peak_device_mb"]), whole(row["estimate_mb"]),
        ]
        for row in rows
    ]  # fmt: skip
    return f"{table([head, *lines])}\n\n{rows[0]['workers']} worker processes."


def kernels(rows: Rows) -> str:
    """Return the attention kernels, and why some do not run."""
    lines = [["precision", "tokens", "pass", "kernel", "time, ms", "peak, MiB", "time, sdpa / kernel"]]
    ran = [row for row in rows if "refused" not in row]
    for row in sorted(ran, key=lambda row: (row["precision"], row["tokens"], row["backward"])):
        same = ("precision", "tokens", "backward")
        base = [one for one in ran if one["kernel"] == "sdpa" and all(one[key] == row[key] for key in same)]
        ratio = f"{base[0]['seconds'] / row['seconds']:.2f}" if base and row["kernel"] != "sdpa" else ""
        name = "forward and backward" if row["backward"] else "forward"
        lines.append([row["precision"], f"{row['tokens']:,}", name, row["kernel"]])
        lines[-1] += [number(1e3 * row["seconds"]), f"{row['peak_mib']:.1f}", ratio]
    refused = [f"{row['kernel']}, {row['precision']}: {row['refused']}." for row in rows if "refused" in row]
    return "\n\n".join([table(lines), *refused])


def masks(rows: Rows) -> str:
    """Return how well masks agree."""
    head = ["network", "compared", "equal voxels", "largest difference of logits", "largest logit", "Dice per class"]
    lines = [
        [
            row["network"], row["compared"], f"{row['equal_voxels']:.4%} of {row['voxels']:,}",
            f"{row['max_difference']:.1e}", f"{row['largest_logit']:.1f}",
            ", ".join(f"{name} {'undefined' if dice is None else f'{dice:.4f}'}" for name, dice in row["dice"].items()),
        ]
        for row in rows
    ]  # fmt: skip
    return table([head, *lines])


def accuracy(rows: Rows) -> str:
    """Return the scores after training, with intervals."""
    records, scores = ([one for row in rows for one in row[key]] for key in ("records", "scores"))
    models = models_of(records, scores)
    return overview(models, list(dict.fromkeys(row["class"] for row in scores)), models[-1])


def number(value: float | None) -> str:
    """Return a number with three digits; a dash for one that is not known."""
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.{MOST_DIGITS}g}"


def whole(value: float | None) -> str:
    """Return a whole number; a dash for one that is not known."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Return a share in percent; a dash for one that is not known."""
    return "–" if value is None else f"{value:.0%}"


SECTIONS: dict[str, tuple[str, Callable[[Rows], str], str]] = {
    "sliding": (
        "The network over a volume",
        sliding,
        "Both ways end with the logits on the host, in turns; medians of three calls, one where both take over 2 s. "
        "Windows overlap by half; float32 is without TF32. The share of kernels is the time of all kernels and copies, "
        "by torch's profiler, over the time without the profiler.",
    ),
    "scan": (
        "A whole CT",
        scan,
        "A made CT at 0.8 mm, predicted at 1.5 mm by a network with random weights, whose mask is noise: restoring, "
        "compressing and writing take longer than those of organs. volseg's command is a process of its own, with its "
        "start-up in the wall time; MONAI's transforms resample and invert on the device, without start-up.",
    ),
    "nnunet": (
        "A whole CT beside nnU-Net",
        scan,
        "The same scan by both commands, start-up included, without mirroring, each with its own network and random "
        "weights: nnU-Net's is the one that it plans for 20 such CTs. It tells no stages and no memory of the device; "
        "that of the host is its main process's.",
    ),
    "steps": (
        "Training",
        steps,
        "The loop of `volseg train` with its loader and augmentation. Kernels are those of ten more steps, by torch's "
        "profiler. The run waits for batches on the host, which also starts their augmentation; the device may "
        "compute meanwhile. The estimate is that of `volseg describe`.",
    ),
    "kernels": (
        "Attention",
        kernels,
        "Batch 1, 12 heads of 64 channels, in one process; medians of three calls; peaks above the inputs.",
    ),
    "masks": (
        "Masks of the CPU and of the device",
        masks,
        "One case with the plan of the hippocampus, without mirroring. Equal voxels and Dice are those of the masks on "
        "the scan's grid.",
    ),
    "accuracy": (
        "Accuracy",
        accuracy,
        "Held-out fold 0, seed 0, random weights, one run each: mean over cases, then over classes, with 95% intervals "
        "over cases. `volseg` has the encoder tiny, `identity` none.",
    ),
}
"""Title, tables and conditions of each section."""
