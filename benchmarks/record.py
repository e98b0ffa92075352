"""What every measurement is written down with: date, commit, hardware, versions, command, threads and seeds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("volseg", "torch", "numpy", "scipy", "nibabel", "monai", "torchio", "lightning-fabric", "safetensors")
PEERS = ("transformers", "xformers", "MedPy", "surface-distance")  # whichever are installed


def save(folder: Path, name: str, settings: dict[str, Any], result: Any, seconds: float) -> None:
    """Write ``<name>.json``: the result with its origin."""
    record = {"name": name, **origin(), "seconds": round(seconds, 1), "settings": settings, "result": result}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, prefix: str) -> list[dict[str, Any]]:
    """All records whose names start like this, by name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(f"{prefix}*.json"))]


def origin() -> dict[str, Any]:
    """When, where and with what."""
    import torch

    from volseg.training.reproducibility import hardware

    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": ["python", *(without_place(argument) for argument in sys.argv)],
        "commit": commit_of(HERE),
        "versions": {name: found for name in (*PACKAGES, *PEERS) if (found := _version(name))},
        "hardware": hardware(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout; ``None`` outside one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def without_place(argument: str) -> str:
    """An argument without what it tells about this machine's folders."""
    path = Path(argument)
    if path.is_absolute():
        root = HERE.parent
        return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
    return argument


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Median wall time of some calls, and the last result."""
    times, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - started)
    return statistics.median(times), result


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def minutes(seconds: float) -> str:
    """A duration to be read by people."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
