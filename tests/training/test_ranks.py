"""Several processes train one model: the same as one process with the same batch, also when they are stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.made.processes import (
    LOSSES,
    in_two_processes,
    make_data,
    train_and_fail,
    train_and_kill,
    train_and_stop,
    train_losses,
    train_losses_together,
    train_misspelt,
    train_to_the_end,
    train_undivided,
    train_whole,
)
from volseg.errors import ConfigError
from volseg.io.model_file import read_model
from volseg.training.checkpoint import load_checkpoint
from volseg.training.ranks import ALONE, Ranks, share_of_batch


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one process and of two. A signal to rank 1 stops all, and one process resumes the run."""
    folder = tmp_path_factory.mktemp("runs")
    make_data(folder / "data")
    assert in_two_processes(train_losses_together, folder) == [0, 0]
    assert in_two_processes(train_and_stop, folder) == [143, 143]
    assert in_two_processes(train_to_the_end, folder) == [0, 0]
    train_losses(ALONE, folder)
    assert load_checkpoint(folder / "stopped" / "checkpoint").progress.step in (3, 4)
    train_whole(folder, "stopped", resume=True)
    return folder


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_train_as_one_with_the_same_batch(name: str, runs: Path) -> None:
    one, first, second = (torch.load(runs / f"{name}-{part}.pt") for part in ("0-of-1", "0-of-2", "1-of-2"))
    assert one["loss"].dtype == LOSSES[name][0]
    assert one["loss"][-1] < one["loss"][0] - 0.01
    assert all(torch.equal(first[key], second[key]) for key in first)  # bitwise
    if name == "float32":
        torch.testing.assert_close(first["loss"], one["loss"], rtol=0, atol=1e-5)
    elif name == "float64":
        torch.testing.assert_close(first, one, rtol=0, atol=1e-8)
    else:  # the gradient of the position embedding is rounded to float32 in each process
        torch.testing.assert_close(first, one, rtol=0, atol=1e-6)


def test_the_processes_of_a_run_and_of_its_end_are_recorded(runs: Path) -> None:
    record = json.loads((runs / "stopped" / "provenance.json").read_text())
    assert (record["processes"], record["resumed"][0]["processes"]) == (2, 1)


def test_a_run_that_one_process_resumes_is_that_of_two_processes(runs: Path) -> None:
    """It has the same files, validations of the same cases and, up to rounding, weights."""
    runs_of = [runs / "stopped", runs / "two"]
    assert len({frozenset(path.name for path in run.iterdir()) for run in runs_of}) == 1
    masks = [{path.name for path in (run / "validation" / "masks").glob("*.nii.gz")} for run in runs_of]
    assert masks[0] == masks[1]
    assert len(masks[0]) == 2
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs_of]
    assert [[(row["step"], row["val_cases"]) for row in run] for run in rows] == [[(3, 2), (6, 2)]] * 2
    for one, two in zip(*rows, strict=True):
        assert two["val_dice"] == pytest.approx(one["val_dice"], abs=0.01)
    resumed, whole = (read_model(run / "model.safetensors")[0] for run in runs_of)
    assert max((resumed[name] - whole[name]).abs().max().item() for name in whole) < 1e-3


@pytest.mark.parametrize(("end", "name", "code"), [(train_and_kill, "killed", -9), (train_and_fail, "failed", 1)])
def test_when_a_process_ends_the_others_end_with_a_checkpoint(
    end: Callable[[Path], None], name: str, code: int, tmp_path: Path
) -> None:
    make_data(tmp_path / "data")
    assert in_two_processes(end, tmp_path) == [2, code]
    assert "another process of the run has ended" in (tmp_path / "lost-0").read_text()
    assert load_checkpoint(tmp_path / name / "checkpoint").progress.step == 3


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (train_misspelt, "unknown configuration key 'train.stepps'"),
        (train_undivided, "train.batch_size is the batch of all processes together"),
    ],
)
def test_an_error_before_the_first_step_ends_all_processes_and_is_shown_once(
    work: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make_data(tmp_path / "data")
    assert in_two_processes(work, tmp_path) == [0, 0]
    assert (tmp_path / "said-0").read_text().startswith(f"2 {message}")
    assert (tmp_path / "said-1").read_text() == "2 "


def test_a_batch_that_does_not_divide_is_refused() -> None:
    assert share_of_batch(6, 3) == 2
    with pytest.raises(ConfigError, match=r"train\.batch_size=6, 4 processes(.|\n)*set train\.batch_size=8"):
        share_of_batch(6, 4)


@pytest.mark.parametrize(("device", "found"), [("mps", "no communication"), ("cuda:1", "one device")])
def test_devices_that_several_processes_cannot_share(device: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Ranks(rank=0, size=2, local_size=2).check_device(torch.device(device))
    Ranks(rank=0, size=2, local_size=2).check_device(torch.device("cpu"))
