"""Several processes pretrain one encoder: the same as one process with the same batch."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.made.processes import in_two_processes
from tests.pretraining.made import pretrain_steps, pretrain_together
from volseg.training.ranks import ALONE


def test_two_processes_pretrain_as_one_with_the_same_batch(tmp_path: Path) -> None:
    assert in_two_processes(pretrain_together, tmp_path) == [0, 0]
    pretrain_steps(ALONE, tmp_path)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert all(torch.equal(first[key], second[key]) for key in first)  # bitwise
    for key, value in one.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
