"""volseg: 3D medical image segmentation with a 2D foundation model.

Importing the package is cheap; torch and other libraries are imported when a function needs them.
"""

from volseg.api import (
    check,
    convert,
    crossval,
    download,
    evaluate,
    features,
    load,
    plan,
    predict,
    pretrain,
    probe,
    train,
)
from volseg.version import __version__

__all__ = [
    "__version__",
    "check",
    "convert",
    "crossval",
    "download",
    "evaluate",
    "features",
    "load",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "train",
]
