"""The configuration of training where none is given."""

from __future__ import annotations

import logging
from collections.abc import Sequence

CONFIG_HELP = "gpu, cpu or demo, or the path of a YAML file (default: gpu with a CUDA device, else cpu)"

logger = logging.getLogger(__name__)


def default_config(overrides: Sequence[str]) -> str:
    """Return ``gpu`` if training will use a CUDA device, otherwise ``cpu``, and log which.

    Args:
        overrides: ``key=value`` strings, of which ``device`` counts; what is invalid is refused with the others.
    """
    import torch

    from volseg.config.load import given_values
    from volseg.errors import ConfigError

    try:
        device = str(given_values(None, overrides).get("device", "auto"))
    except ConfigError:
        device = "auto"
    name = "gpu" if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()) else "cpu"
    logger.info("no --config is given: the configuration %s is taken (device=%s)", name, device)
    return name
