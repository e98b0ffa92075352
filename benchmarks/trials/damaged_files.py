"""Damaged files of every kind, each determined by a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trials.damaged_dicom import DamagedSeries
from trials.damaged_documents import DamagedDocuments
from trials.damaged_models import DamagedCheckpoints, DamagedModels
from trials.damaged_scans import DamagedScans
from trials.mutations import Mutant


class DamagedFiles:
    """Mutants of every kind.

    Args:
        folder: Where they are written; a mutant replaces the one before it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        scans, models, checkpoints = DamagedScans(folder), DamagedModels(folder), DamagedCheckpoints(folder)
        documents = DamagedDocuments(folder, checkpoints.plan, checkpoints.config)
        series = DamagedSeries(folder)
        self._kinds = (*[scans] * 5, *[series] * 2, models, checkpoints, *[documents] * 3)

    def make(self, seed: int) -> Mutant:
        """Write the mutant of a seed."""
        rng = np.random.default_rng([20_251_127, seed])
        return self._kinds[int(rng.integers(len(self._kinds)))].make(rng)
