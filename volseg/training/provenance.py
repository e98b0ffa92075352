"""Provenance of a run: data, weights, packages, hardware and source."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from volseg.version import __version__

_PACKAGES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "monai", "torchio", "lightning-fabric", "safetensors")


def provenance(
    seed: int, data_hash: str, weights_hash: str | None, parameters: dict[str, Any], precision: torch.dtype
) -> dict[str, Any]:
    """Return what a result depends on: versions, commit, command, seed, hardware, data and weights.

    Args:
        seed: Seed of the run.
        data_hash: Key of the preprocessed cases (covers the files and the plan).
        weights_hash: SHA-256 of the file the network started from; ``None`` for a random start.
        parameters: Total and trainable parameters of the model and of its parts.
        precision: Precision of the network's multiplications.
    """
    return {
        "volseg": __version__,
        "commit": _commit(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "data_hash": data_hash,
        "weights_sha256": weights_hash,
        "parameters": parameters,
        "precision": str(precision).removeprefix("torch."),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Return processor, threads and GPU of this machine."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "platform": platform.platform(),
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout that volseg runs from; ``None`` outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
