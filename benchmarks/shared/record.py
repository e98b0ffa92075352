"""Results on disk: JSON with date, commit, hardware, versions, command and threads, and the table beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Record = dict[str, Any]
BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
TRANSFORMER_CONFIG = ROOT / "benchmarks" / "transformer.yaml"
PACKAGES = ("volseg", "torch", "numpy", "scipy", "nibabel", "monai", "lightning-fabric", "safetensors")
PEERS = ("transformers", "xformers", "MedPy", "surface-distance", "torchio")  # recorded where they are installed


def origin() -> Record:
    """Return when, from which source, on which machine and by which command a result was measured."""
    import torch

    from volseg.training.provenance import hardware

    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": ["python", *(portable_argument(argument) for argument in sys.argv)],
        "commit": commit_of(BENCHMARKS),
        "versions": {name: number for name in (*PACKAGES, *PEERS) if (number := _version(name))},
        "hardware": hardware(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }


def save(folder: Path, name: str, settings: Record, result: Any, seconds: float) -> None:
    """Write ``<name>.json``: a result with its settings and origin."""
    record = {"name": name, **origin(), "seconds": round(seconds, 1), "settings": settings, "result": result}
    write_json(folder / f"{name}.json", record)


def load(folder: Path, prefix: str = "") -> list[Record]:
    """Read all records of a folder whose names start with a prefix, sorted by name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(f"{prefix}*.json"))]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; the folder is made."""
    from volseg.io.atomic import atomic_file

    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def with_ending(stem: Path, ending: str) -> Path:
    """Return a path with an ending behind its name, in which dots may be (``0.5min``)."""
    return stem.with_name(stem.name + ending)


def write_page(path: Path, text: str) -> None:
    """Write a Markdown page and print it; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


def commit_of(folder: Path) -> str | None:
    """Return the commit of a checkout; ``None`` outside one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def portable_argument(argument: str) -> str:
    """Return an argument without this machine's folders: relative to the checkout, or the file's name."""
    path = Path(argument)
    if path.is_absolute():
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return argument


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
