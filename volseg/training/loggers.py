"""Loggers that copy the numbers of a run to an experiment tracker; ``metrics.jsonl`` stays the source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.config.schema import Config
from volseg.errors import ConfigError
from volseg.extras import import_extra

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

FOUND_LENGTH = 300
MODULES = {
    "tensorboard": ("tensorboard", "lightning_fabric.loggers", "TensorBoardLogger"),
    "mlflow": ("mlflow", "pytorch_lightning.loggers", "MLFlowLogger"),
    "wandb": ("wandb", "pytorch_lightning.loggers", "WandbLogger"),
}
"""The tracker's own module, and the module and class of Lightning's logger for it."""


def check_logger(name: str | None) -> None:
    """Check that the libraries of a logger are installed.

    Raises:
        MissingExtraError: They are not.
    """
    if name is not None:
        for module in MODULES[name][:2]:
            import_extra(module, name, f"train.logger={name}")


def open_logger(config: Config, folder: Path) -> Logger | None:
    """Return the logger of a run, or ``None`` if ``train.logger`` is not set.

    TensorBoard's event files are written into ``tensorboard/`` of the run folder. MLflow and Weights & Biases take
    their address and login from their own environment variables; MLflow's default is ``mlflow/mlflow.db`` in the run
    folder: MLflow 3 refuses folders of files.

    Args:
        config: The configuration.
        folder: The run folder.

    Raises:
        MissingExtraError: The library is not installed.
        ConfigError: The tracker refuses the run, for example because nobody is logged in.
    """
    name = config.train.logger
    if name is None:
        return None
    check_logger(name)
    _, module, kind = MODULES[name]
    make = getattr(import_extra(module, name, f"train.logger={name}"), kind)
    settings: dict[str, dict[str, Any]] = {
        "tensorboard": {"root_dir": folder, "name": None, "version": "tensorboard"},
        "mlflow": {"experiment_name": "volseg", "run_name": folder.name},
        "wandb": {"project": "volseg", "name": folder.name, "save_dir": str(folder)},
    }
    if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
        database = folder.resolve() / "mlflow" / "mlflow.db"
        database.parent.mkdir(parents=True, exist_ok=True)
        settings[name] |= {"tracking_uri": f"sqlite:///{database}", "artifact_location": str(database.parent)}
    try:
        made: Any = make(**settings[name])
        _ = made.experiment  # it connects here
    except Exception as error:  # each tracker has errors of its own
        found = f"{type(error).__name__}: {error}"[:FOUND_LENGTH]
        hint = "see the tracker's own documentation, or leave train.logger out"
        raise ConfigError(f"train.logger={name} cannot be opened", found=found, hint=hint) from error
    logger: Logger = made
    return logger


def tracked_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of ``metrics.jsonl`` without its step: ``loss``, ``val_dice_by_class/liver``."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= {f"{key}/{name}": item for name, item in value.items()} if isinstance(value, Mapping) else {key: value}
    return {key: value for key, value in flat.items() if key != "step" and isinstance(value, int | float)}
