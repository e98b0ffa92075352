from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from volseg.config.schema import TrainConfig
from volseg.data.split_files import read_run_split
from volseg.errors import ConfigError, OutputError
from volseg.training.ema import WeightAverage
from volseg.training.optimizer import build_optimizer
from volseg.training.provenance import provenance
from volseg.training.run_log import RunLog, read_metrics
from volseg.training.schedule import Budget, learning_rate_factor
from volseg.training.state import seed_step


def test_the_budget_counts_steps_or_seconds() -> None:
    steps = Budget.from_config(TrainConfig(max_steps=10))
    assert [steps.progress(step, 1e9) for step in (0, 5, 10, 11)] == [0, 0.5, 1, 1]
    minutes = Budget.from_config(TrainConfig(max_minutes=2))
    assert [minutes.progress(10**9, seconds) for seconds in (0, 60, 120, 500)] == [0, 0.5, 1, 1]
    with pytest.raises(ConfigError, match="no limit"):
        Budget.from_config(TrainConfig())


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(max_steps=1, warmup_fraction=0.1)
    factors = [learning_rate_factor(progress, config) for progress in (0, 0.05, 0.1, 0.55, 1.0)]
    assert factors == pytest.approx([0.01, 0.5, 1, 0.5, 0])
    assert learning_rate_factor(0, replace(config, warmup_fraction=0.0)) == 1


def test_sgd_has_the_schedule_and_momentum_of_nnunet() -> None:
    config = TrainConfig(max_steps=1, optimizer="sgd")
    factors = [learning_rate_factor(progress, config) for progress in (0, 0.5, 0.9, 1.0)]
    assert factors == pytest.approx([1, 0.5**0.9, 0.1**0.9, 0])
    group = {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.01, "weight_decay": 3e-5}
    optimizer = build_optimizer(config, [group], torch.device("cpu"))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {key: optimizer.defaults[key] for key in ("momentum", "nesterov")} == {"momentum": 0.99, "nesterov": True}
    assert optimizer.param_groups[0]["weight_decay"] == 3e-5


def test_the_average_follows_and_keeps_frozen_weights() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, decay=0.9)
    before = average.model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
        average.update(torch.tensor(True))
    weight = 1 - 2 / 11  # the first update has decay (1 + 1) / (10 + 1)
    torch.testing.assert_close(average.model.weight.detach(), before + weight)
    for _ in range(200):
        average.update(torch.tensor(True))
    torch.testing.assert_close(average.model.weight.detach(), model.weight.detach())
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_the_log_drops_lines_after_the_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=0)
    for step in (20, 40):
        log.train({"step": step, "loss": 1.0, "lr": 0.1, "skipped": 0, "elapsed_s": 2.0}, "50%")
    log.validation({"step": 40, "val_dice": 0.5, "val_hd95": 3.0, "val_cases": 2, "elapsed_s": 3.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": "many"}\n[3]\n{}\n{"step": 6')
    resumed = RunLog(tmp_path, resume_step=20)
    resumed.close()
    row = {"step": 20, "loss": 1.0, "lr": 0.1, "skipped": 0, "elapsed_s": 2.0}
    assert read_metrics(tmp_path / "metrics.jsonl") == [row]
    assert (tmp_path / "progress.png").stat().st_size > 0


def test_a_log_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    row = {"step": 20, "loss": 1.0, "lr": 0.1, "skipped": 0, "elapsed_s": 2.0}
    log = RunLog(tmp_path, resume_step=0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"metrics\.jsonl(.|\n)*No space left"):
        log.train(row, "50%")
    (tmp_path / "progress.png").mkdir()
    with pytest.raises(OutputError, match=r"progress\.png"):
        log.close()


def test_a_split_file_holds_lists_of_cases(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    split = {"fold": 0, "train": ["a", "b"], "val": ["c"]}
    path.write_text(json.dumps(split))
    assert read_run_split(path) == split
    changes: list[dict[str, object]] = [{"train": 3}, {"train": [1]}, {"val": None}, {"val": []}, {"val": "abc"}]
    for wrong in ([], 3, *({**split, **change} for change in changes)):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ConfigError, match=r"no list of cases under(.|\n)*splits\.json"):
            read_run_split(path)


def test_each_step_draws_its_own_numbers() -> None:
    def draw(seed: int, step: int) -> float:
        seed_step(seed, step)
        return torch.rand(1).item()

    assert draw(0, 5) == draw(0, 5)
    assert len({draw(0, 5), draw(0, 6), draw(1, 5)}) == 3


def test_the_provenance_is_json_and_says_what_ran() -> None:
    record = provenance(3, "abc", None, {"total": 2, "trainable": 1}, torch.bfloat16)
    assert json.loads(json.dumps(record)) == record
    assert record["versions"]["torch"]
    assert record["hardware"]["threads"] >= 1
