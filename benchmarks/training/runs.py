"""Training runs of a comparison: each is a process of ``tools/train.py``; a finished run is kept."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.record import ROOT, Record, write_json
from shared.text import say
from training.unchanged import check_unchanged
from volseg.config.load import load_config
from volseg.device import choose_device
from volseg.io.datasets import Dataset
from volseg.io.model_file import read_metadata
from volseg.training.checkpoint import CHECKPOINTS, has_checkpoint
from volseg.training.resume import CONFIG_FILE

METRICS = ("dice", "hd95")
NO_VALIDATION = "train.validate_every=1000000000"
"""Validation on whole volumes during training would take time and change nothing."""
FINISHED = "cell.json"
"""File in a run folder that marks a finished run and holds its record."""


def settings_of_steps(args: argparse.Namespace) -> list[str]:
    """Return the settings that all runs of a command share: data, fold, cache, and a length in steps."""
    settings = [f"data.root={args.data}", f"data.cache={args.runs / 'preprocessed'}", f"data.fold={args.fold}"]
    return [*settings, "train.max_minutes=null", f"train.max_steps={args.steps}", NO_VALIDATION, *args.settings]


def finished_run(folder: Path, name: str, config: Path, settings: Sequence[str]) -> Record:
    """Return the record of a run. Train first if it is not finished, from its checkpoint if it was interrupted.

    Args:
        folder: Run folder.
        name: Name of the model in the table.
        config: YAML file.
        settings: ``key=value``, without ``output``.

    Raises:
        SystemExit: The training failed, or the run in the folder has other settings, cases or split.
    """
    finished = folder / FINISHED
    if finished.exists() or has_checkpoint(folder / CHECKPOINTS):
        check_unchanged(folder, config, settings)
    if not finished.exists():
        write_json(finished, {"model": name, **_train(folder, config, settings)})
    return dict(json.loads(finished.read_text(encoding="utf-8")))


def _train(folder: Path, config: Path, settings: Sequence[str]) -> Record:
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(config), "--resume"]
    command += [f"output={folder}", *settings]
    say(" ".join(command))
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{folder} failed, see above; the same command resumes it")
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    trained = read_metadata(folder / "model.safetensors")["training"]
    return {
        "settings": [text for text in settings if not text.startswith(("data.root=", "data.cache="))],
        "date": provenance["created"],
        "commit": provenance["commit"],
        "resumed_commits": [part["commit"] for part in provenance.get("resumed", ())],
        "versions": provenance["versions"],
        "hardware": provenance["hardware"],
        "device": choose_device(load_config(folder / CONFIG_FILE).device).type,
        "seed": provenance["seed"],
        "parameters": provenance["parameters"]["total"],
        "trained_parameters": provenance["parameters"]["trainable"],
        "precision": provenance["precision"],
        "steps": trained["step"],
        "train_seconds": round(trained["elapsed_s"], 1),
        "wall_seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1000),
        "scores": class_means(read_cases(folder)),
    }


def read_cases(folder: Path) -> list[dict[str, str]]:
    """Read the scores per case and class of a run's held-out cases."""
    with (folder / "validation" / "scores" / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def class_means(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Return the mean of each metric over cases, per class and, under ``mean``, over the classes."""
    scored = [row for row in rows if row["status"] != "failed"]
    means = {}
    for name in dict.fromkeys(row["class"] for row in scored):
        of_class = [row for row in scored if row["class"] == name]
        means[name] = {metric: mean_of(row[metric] for row in of_class) for metric in METRICS}
    return means | {"mean": {metric: mean_of(scores[metric] for scores in means.values()) for metric in METRICS}}


def mean_of(values: Iterable[str | float]) -> float:
    """Return the mean of the scores that are defined (an empty text is an undefined one)."""
    defined = [float(value) for value in values if value != "" and not math.isnan(float(value))]
    return round(statistics.fmean(defined), 5) if defined else float("nan")


def write_csv(path: Path, rows: Sequence[Record]) -> None:
    """Write rows of the same columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def folder_name(dataset: Dataset) -> str:
    """Return the name of a data set as the name of one folder."""
    return dataset.name.replace("/", "_").lstrip(".")


def machine_text(record: Record) -> str:
    """Return processor or GPU, threads and precision of a run."""
    hardware, precision = record["hardware"], record.get("precision", "float32")
    if record.get("device") == "cuda":
        return f"{hardware['gpu']}, {precision}"
    threads = hardware["threads"]
    return f"{hardware['cpu']}, {threads} thread{'s' if threads > 1 else ''}, {precision}"


def commits_text(records: Iterable[Record]) -> str:
    """Return the commits of some runs, those with which they were resumed included."""
    commits = {commit for run in records for commit in (run["commit"], *run.get("resumed_commits", ()))}
    return ", ".join(sorted({str(commit)[:10] for commit in commits}))
