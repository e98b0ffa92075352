"""volseg: 3D medical image segmentation with a 2D foundation model.

Importing the package is cheap; :func:`load` imports torch when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from volseg.version import __version__

if TYPE_CHECKING:
    from volseg.inference.predictor import Predictor

__all__ = ["__version__", "load"]


def load(model_file: str | Path, device: str = "auto") -> Predictor:
    """Read a trained model.

    Args:
        model_file: A ``model.safetensors`` written by training.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Returns:
        A predictor; ``predict(path)`` or ``predict(array, affine)`` gives a mask on the scan's own grid.

    Raises:
        ModelFileError: The file is missing, damaged or not a volseg model.
    """
    from volseg.inference.predictor import Predictor

    return Predictor.from_file(model_file, device=device)
