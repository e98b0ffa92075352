"""Plan a data set and preprocess all its cases, as a training does before its first step: ``DATA FOLDER WORKERS``."""

from __future__ import annotations

import sys
from pathlib import Path

import volseg
from volseg.io.datasets import read_dataset
from volseg.preprocessing.cache import cache_dataset


def main() -> None:
    """Measure, plan, preprocess."""
    data, folder, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    plan = volseg.plan(data, workers=workers)
    cache_dataset(read_dataset(data).cases, plan, folder, workers=workers)


if __name__ == "__main__":
    main()
