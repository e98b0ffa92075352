"""Provenance of a run: data, weights, packages, hardware and source."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from volseg.device import choose_device, training_dtype
from volseg.errors import ConfigError
from volseg.io.content import file_sha256
from volseg.io.json_files import read_json, write_json
from volseg.models.start import weight_file
from volseg.preprocessing.cache import data_hash
from volseg.training.experiment import Experiment
from volseg.training.resume import Change
from volseg.version import __version__

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "monai", "lightning-fabric", "safetensors")


def write_provenance(
    experiment: Experiment,
    parameters: dict[str, Any],
    changes: Sequence[Change] = (),
    processes: int = 1,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Log and store what the run is made with; a resumed run keeps its record and adds how it goes on.

    Args:
        experiment: Data, plan and configuration.
        parameters: Total and trainable parameters of the model and of its parts.
        changes: Settings in which a resumed run differs.
        processes: Processes that train together.
        start: What the network took over from a weight file, and what starts anew.

    Raises:
        ConfigError: The record of the resumed run is missing or damaged.
    """
    config, path = experiment.config, experiment.folder / "provenance.json"
    logger.info("parameters: %s", parameter_text(parameters))
    former = read_provenance(path) if experiment.resumed else None
    weights = weight_file(config.model) if former is None else None
    weights_hash = file_sha256(weights) if weights is not None else None
    precision = training_dtype(config.precision, choose_device(config.device))
    record = provenance(config.seed, data_hash(experiment.train_cases), weights_hash, parameters, precision)
    record["processes"] = processes
    record["start"] = start
    return write_record(path, record, former, changes)


def write_record(
    path: Path, record: dict[str, Any], former: dict[str, Any] | None, changes: Sequence[Change]
) -> dict[str, Any]:
    """Write the record of a run; that of a resumed run is the former one, with how it goes on.

    Args:
        path: The file.
        record: What the run is made with now, with ``processes``.
        former: What it was started with; ``None`` if it starts now.
        changes: Settings in which a resumed run differs.

    Returns:
        What was written.
    """
    if former is not None:
        kept = ("volseg", "commit", "created", "command", "precision", "hardware", "processes")
        now = {name: record[name] for name in kept}
        if now["precision"] != former.get("precision"):
            logger.warning("precision: %s at the start, %s from here on", former.get("precision"), now["precision"])
        now["changes"] = {change.key: [change.before, change.after] for change in changes}
        record = {**former, "resumed": [*former.get("resumed", ()), now]}
    write_json(path, record)
    return record


def read_provenance(path: Path) -> dict[str, Any]:
    """Read the ``provenance.json`` of a run.

    Raises:
        ConfigError: It is missing or damaged.
    """
    record = read_json(path, "provenance")
    if not isinstance(record, dict) or not isinstance(record.get("resumed", []), list):
        hint = "restore the file from a copy"
        raise ConfigError("this is not the provenance of a run", file=path, found=str(record)[:80], hint=hint)
    return record


def parameter_text(parameters: dict[str, Any]) -> str:
    """Return trainable and total parameters of the network and of its parts, in one line."""
    counts = {"all": parameters, **parameters["parts"]}
    return "; ".join(f"{part}: {n['trainable']:,} of {n['total']:,} trainable" for part, n in counts.items())


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
