"""Trainings of the benchmarks: nnU-Net's budget, split and stages, and the grid of adaptations with its pooled Dice."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from volseg.config.load import load_config
from volseg.config.schema import DataConfig
from volseg.data.split_rules import choose_split
from volseg.io.cases import Case
from volseg.io.datasets import Dataset
from volseg.io.labels import LabelMap


def part(module: str) -> Any:
    """Import at run time: the folder of the benchmarks is on the path inside of tests only."""
    return import_module(f"training.{module}")


def made_dataset(names: str) -> Dataset:
    """A data set whose files do not exist; splits need names only."""
    cases = tuple(Case(name, (Path(f"{name}.nii.gz"),), Path(f"{name}_label.nii.gz")) for name in names)
    return Dataset(root=Path("made"), name="Made", channels=("CT",), label_map=LabelMap({"organ": (1,)}), cases=cases)


def test_only_training_uses_up_the_budget() -> None:
    clock = part("budget").BudgetClock(60)
    clock.add("compilation", 100)
    clock.add("validation", 100)
    assert clock.progress == 0
    clock.add("training", 30)
    assert clock.progress == 0.5
    clock.add("training", 31)
    assert clock.progress == 1
    assert clock.seconds == {"training": 61, "compilation": 100, "validation": 100}


def test_the_learning_rate_is_that_of_nnunet_at_the_same_share_of_its_epochs() -> None:
    polynomial_lr = part("budget").polynomial_lr
    assert polynomial_lr(0.01, 0) == 0.01
    assert polynomial_lr(0.01, 0.5) == pytest.approx(0.01 * (1 - 500 / 1000) ** 0.9)
    assert polynomial_lr(0.01, 1) == 0


def test_the_schedule_follows_the_clock_and_not_the_epoch() -> None:
    budget = part("budget")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    clock = budget.BudgetClock(10)
    schedule = budget.BudgetSchedule(optimizer, 0.01, clock)
    clock.add("training", 5)
    schedule.step(5000)  # more epochs than nnU-Net's own schedule has
    assert optimizer.param_groups[0]["lr"] == budget.polynomial_lr(0.01, 0.5)


def test_the_split_of_nnunet_is_that_of_volseg() -> None:
    dataset = made_dataset("abcdefg")
    splits = part("nnunet_cell").splits_final(dataset, DataConfig(fold=3))
    assert len(splits) == 5
    for fold, split in enumerate(splits):
        chosen = choose_split(dataset, DataConfig(fold=fold), seed=0)
        assert split == {"train": chosen["train"], "val": chosen["val"]}
    assert sorted(name for split in splits for name in split["val"]) == list("abcdefg")


def test_folds_that_a_split_file_lacks_are_empty(tmp_path: Path) -> None:
    file = tmp_path / "folds.csv"
    file.write_text("case,fold\na,2\nb,2\nc,0\n", encoding="utf-8")
    splits = part("nnunet_cell").splits_final(made_dataset("abc"), DataConfig(fold=2, splits=str(file)))
    assert [split["val"] for split in splits] == [["c"], [], ["a", "b"]]
    assert splits[1] == {"train": [], "val": []}


def test_a_finished_stage_is_kept_and_a_failed_one_is_repeated(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "work"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$NNUNET_SEED" >> "$1"\nexit "$2"\n', encoding="utf-8")
    program.chmod(0o755)
    cell = part("nnunet_cell").NnunetCell(
        environment=tmp_path, shared=tmp_path / "shared", folder=tmp_path / "cell", data=DataConfig(), seed=7,
        budget_s=60, device="cpu", threads=1, processes=1,
    )  # fmt: skip
    traces = [str(tmp_path / name) for name in ("good", "bad")]
    for _ in range(2):
        cell.stage(cell.folder, "training", ["work", traces[0], "0"])
        with pytest.raises(SystemExit, match="work failed"):
            cell.stage(cell.folder, "prediction", ["work", traces[1], "1"])
    assert Path(traces[0]).read_text(encoding="utf-8") == "7\n"
    assert Path(traces[1]).read_text(encoding="utf-8") == "7\n7\n"
    stages = json.loads((cell.folder / "nnunet" / "stages.json").read_text(encoding="utf-8"))
    assert list(stages) == ["training"]


def test_pooled_dice_counts_voxels_and_not_cases() -> None:
    large, small = np.zeros((4, 5, 10), np.uint8), np.zeros((4, 5, 10), np.uint8)
    large[:2, :4], small[:, :, 0] = 1, 1  # 80 and 20 voxels
    nothing, pooled_dice = np.zeros_like(small), part("pooled_dice").pooled_dice
    classes = {"organ": (1,), "absent": (2,)}
    found = pooled_dice([(large, large), (nothing, small)], classes)
    assert found == {"organ": round(2 * 80 / (80 + 100), 5), "absent": None, "mean": round(160 / 180, 5)}  # cases: 0.5


def test_pooled_dice_of_regions_leaves_ignored_voxels_out() -> None:
    reference = np.array([[[1, 2, 9, 0]]])
    prediction = np.array([[[1, 0, 2, 0]]])
    found = part("pooled_dice").pooled_dice([(prediction, reference)], {"whole": (1, 2), "core": (2,)}, 9)
    assert found == {"whole": round(2 / 3, 5), "core": 0.0, "mean": round(1 / 3, 5)}
    assert part("pooled_dice").pooled_dice([], {"whole": (1,)})["mean"] is None


def test_the_grid_has_a_cell_for_each_combination_with_a_folder_of_its_own() -> None:
    grid = part("adaptation_grid")
    encoders = [grid.Encoder.parse(text) for text in ("tiny:random", "dinov2_s14:folder/some_file.pth")]
    shots = [grid.count_of(text, 40) for text in ("1", "1%", "10%", "100%")]
    assert shots == [1, 1, 4, 40]
    jobs = grid.jobs_of(encoders, list(grid.ADAPTATIONS), shots, [0, 1])
    assert len(jobs) == 2 * 6 * 3 * 2
    assert len({job.folder(Path("runs")) for job in jobs}) == len(jobs)
    assert jobs[-1].folder(Path()) == Path("40 cases/dinov2_s14_some_file,_full/seed1")
    assert [(job.cases, job.seed) for job in jobs[:12]] == [(1, 0)] * 12


def test_every_adaptation_is_a_valid_configuration() -> None:
    grid = part("adaptation_grid")
    for job in grid.jobs_of([grid.Encoder.parse("tiny:random")], list(grid.ADAPTATIONS), [5], [3]):
        config = load_config(None, [*job.settings, "train.max_steps=1"])
        assert (config.model.encoder, config.seed, config.data.shots) == ("tiny", 3, 5)


def test_the_list_prints_a_command_for_each_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptation = import_module("adaptation")
    monkeypatch.setattr(adaptation, "read_dataset", lambda _: made_dataset("abcde"))
    given = ["--data", "some folder", "--steps", "2", "--encoders", "tiny:random", "--shots", "1,100%"]
    monkeypatch.setattr("sys.argv", ["adaptation.py", *given, "--seeds", "0", "--list"])
    assert adaptation.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[11].startswith("python adaptation.py --cell 11 --data 'some folder' --steps 2")
    assert "--list" not in lines[0]


@pytest.mark.parametrize("text", ["tiny", "tiny:", ":random"])
def test_an_encoder_without_weights_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="expected encoder:weights"):
        part("adaptation_grid").Encoder.parse(text)
