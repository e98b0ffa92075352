"""Accuracy after some minutes of training on the device, with and without a transformer, by ``tools/train.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from card.device import loader_workers
from shared.record import ROOT, Record
from training.comparison import read_cells
from training.runs import NO_VALIDATION, finished_run

CONFIG = ROOT / "volseg" / "configs" / "gpu.yaml"
MODELS = {"volseg": ["model.encoder=tiny"], "identity": ["model.encoder=identity"]}


def rows(device: str, data: str, minutes: float, runs: str) -> Iterator[Record]:
    """Yield a row for each model: the record of its run and the scores of its held-out cases; fold 0.

    A finished run is kept, and an interrupted one resumes from its checkpoint.
    """
    shared = [f"data.root={data}", f"data.cache={runs}/preprocessed", f"device={device}", "data.fold=0", "seed=0"]
    shared += [f"data.workers={loader_workers()}", "model.weights=random", NO_VALIDATION]
    shared += [f"train.max_minutes={minutes:g}", "train.max_steps=null"]
    for name, settings in MODELS.items():
        finished_run(Path(runs) / name / "fold0_seed0", name, CONFIG, [*shared, *settings])
        records, scores = read_cells(Path(runs), [name])
        yield {"model": name, "records": records, "scores": scores}
