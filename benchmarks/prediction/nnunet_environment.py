"""nnU-Net's own virtual environment, made by ``benchmarks/nnunet.py``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.measure import BENCHMARKS, run_function
from shared.text import say

FOLDER = BENCHMARKS / ".nnunet"


def model_folder(folder: Path = FOLDER) -> Path:
    """Return the folder for ``nnUNetv2_predict_from_modelfolder -m``."""
    return folder / "model"


def command(folder: Path, name: str) -> str:
    """Return the path of an executable of the environment."""
    return str(folder / "bin" / name)


def check_ready(folder: Path = FOLDER) -> bool:
    """Return whether environment and model folder exist; say so if not."""
    ready = (model_folder(folder) / "plans.json").exists() and Path(command(folder, "python")).exists()
    if not ready:
        say("nnU-Net is not set up (python benchmarks/nnunet.py setup); volseg is measured alone")
    return ready


def run_inside(
    folder: Path, function: Callable[..., Any], settings: Mapping[str, Any], limit_bytes: int | None = None
) -> dict[str, Any]:
    """Call a function of `prediction.inside_nnunet` inside of the environment (see `run_function`)."""
    python, variables = command(folder, "python"), clean_environment()
    return run_function(function, settings, python=python, environment=variables, limit_bytes=limit_bytes)


def clean_environment(**more: str) -> dict[str, str]:
    """Return the variables of this process without those that lead Python to the project's packages."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | more


def installed_version(folder: Path) -> str:
    """Return the version of nnU-Net in the environment."""
    code = "from importlib.metadata import version; print(version('nnunetv2'))"
    done = subprocess.run([command(folder, "python"), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
