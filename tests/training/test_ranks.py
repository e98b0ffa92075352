"""Several processes train one model: the same weights as one process with the same batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.made.processes import RUNS, in_two_processes, run_all
from volseg.training.ranks import ALONE


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one process and of two."""
    folder = tmp_path_factory.mktemp("runs")
    run_all(ALONE, folder)
    in_two_processes(run_all, folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_with_the_same_batch(name: str, runs: Path) -> None:
    alone, first, second = (torch.load(runs / f"{name}-{part}.pt") for part in ("0-of-1", "0-of-2", "1-of-2"))
    assert alone["loss"].dtype == RUNS[name][0]
    assert alone["loss"][-1] < 0.97 * alone["loss"][0]
    assert all(torch.equal(first[key], second[key]) for key in first)  # bitwise
    if name == "float32":
        torch.testing.assert_close(first["loss"], alone["loss"], rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(first, alone, rtol=0, atol=1e-8)
