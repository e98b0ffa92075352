"""Training runs as cells of a table: each a ``tools/train.py`` of its own that is kept once it is finished."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from record import say

from volseg.io.model_file import read_metadata

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("dice", "hd95")


def train_cell(folder: Path, name: str, config: Path, settings: Sequence[str]) -> dict[str, Any]:
    """What a run left; trained now if it is not finished, from its checkpoint if it was interrupted.

    Args:
        folder: Run folder; ``cell.json`` in it marks a finished cell.
        name: What the table calls it.
        config: YAML file.
        settings: ``key=value``, without ``output``.
    """
    finished = folder / "cell.json"
    if not finished.exists():
        record = _train(folder, config, settings)
        finished.write_text(json.dumps({"model": name, **record}, indent=1) + "\n", encoding="utf-8")
    return dict(json.loads(finished.read_text(encoding="utf-8")))


def _train(folder: Path, config: Path, settings: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(config), "--resume"]
    command += [f"output={folder}", *settings]
    say(" ".join(command))
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{folder} failed; see above. The command can be given again.")
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    trained = read_metadata(folder / "model.safetensors")["training"]
    return {
        "settings": [text for text in settings if not text.startswith(("data.root=", "data.cache="))],
        "date": provenance["created"],
        "commit": provenance["commit"],
        "versions": provenance["versions"],
        "hardware": provenance["hardware"],
        "seed": provenance["seed"],
        "parameters": provenance["parameters"]["total"],
        "precision": provenance["precision"],
        "steps": trained["step"],
        "train_seconds": round(trained["elapsed_s"], 1),
        "wall_seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1000),
        "scores": class_means(read_cases(folder)),
    }


def read_cases(folder: Path) -> list[dict[str, str]]:
    """Per-case scores of a run's held-out cases."""
    with (folder / "validation" / "scores" / "cases.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def class_means(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Class -> mean Dice and HD95 over the cases where they are defined, and the mean over classes."""
    scored = [row for row in rows if row["status"] != "failed"]
    means = {}
    for name in dict.fromkeys(row["class"] for row in scored):
        of_class = [row for row in scored if row["class"] == name]
        means[name] = {metric: mean_of(row[metric] for row in of_class) for metric in METRICS}
    return means | {"mean": {metric: mean_of(scores[metric] for scores in means.values()) for metric in METRICS}}


def mean_of(values: Iterable[str | float]) -> float:
    """Mean of what is defined; an empty cell is a score that is not."""
    defined = [float(value) for value in values if value != ""]
    return round(statistics.fmean(defined), 5) if defined else float("nan")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of the same columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
