"""Which configuration a resumed run has, and which changes are refused."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from volseg.cli.train import resuming_command
from volseg.config.load import config_to_dict, load_config
from volseg.config.reference import settings
from volseg.config.schema import Config
from volseg.errors import ConfigError
from volseg.training.resume import (
    MAY_CHANGE,
    Change,
    changes,
    config_to_resume,
    log_changes,
    refuse_changes,
    refuse_earlier_end,
    save_config,
)

OWN = ["data.root=data", "data.shots=3", "plan.token_stride=8", "train.max_steps=10", "train.lr=0.002", "seed=4"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has a checkpoint; its content is not read here."""
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "last.pt").touch()
    save_config(load_config(None, [*OWN, f"output={folder}"]), folder)
    return folder


def test_the_settings_that_may_change_exist_and_have_a_reason() -> None:
    assert MAY_CHANGE.keys() <= {setting.key for setting in settings()}
    assert all(MAY_CHANGE.values())


def test_what_is_not_given_is_that_of_the_run(run: Path) -> None:
    own = load_config(run / "config.yaml")
    assert config_to_resume(None, [], run) == own
    assert config_to_resume({"output": str(run)}, []) == own
    assert config_to_resume(None, [f"output={run}", "data.shots=3", "plan.token_stride=8"]) == own
    assert config_to_resume(None, ["train.max_steps=20"], run).train.max_steps == 20
    minutes = config_to_resume(None, ["train.max_minutes=2"], run).train
    assert (minutes.max_steps, minutes.max_minutes, minutes.lr) == (None, 2, 0.002)


def test_a_configuration_file_does_not_change_what_the_run_was_started_with(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An override at the start counts, also where the file that it overrode is given again."""
    caplog.set_level(logging.INFO)
    file = tmp_path / "own.yaml"
    file.write_text("{output: elsewhere, train: {max_steps: 250, lr: 0.002, validate_every: 5}, data: {workers: 7}}")
    own = load_config(run / "config.yaml")
    assert config_to_resume(file, ["data.workers=3"], run) == replace(own, data=replace(own.data, workers=3))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        "kept from the run, unless given as key=value: "
        f"train.max_steps=10 (in {file}: 250), train.validate_every=500 (in {file}: 5)"
    )
    assert config_to_resume(file, ["train.max_minutes=2"], run).train.max_steps is None
    file.write_text("train: {max_minutes: 3, lr: 0.001}")
    with pytest.raises(ConfigError, match=r"found: 1:\n    train\.lr: the run has 0\.002, given 0\.001"):
        config_to_resume(file, [], run)


def test_the_command_that_continues_a_run(run: Path) -> None:
    """Its folder is enough once it has a checkpoint; settings that a resumed run was given are kept."""
    file = run / "config.yaml"
    started = argparse.Namespace(config=str(file), overrides=["train.lr=1e-3"], resume=False)
    assert resuming_command(started) == f"volseg train --resume {run}"
    changed = argparse.Namespace(config=None, overrides=["train.max_steps=9", f"output={run}"], resume=True)
    assert resuming_command(changed, "2").endswith(f"-m volseg train train.max_steps=9 --resume {run}")
    (run / "checkpoint" / "last.pt").unlink()
    assert resuming_command(started) == f"volseg train --config {file} train.lr=1e-3 --resume"


def test_a_run_that_was_moved_is_resumed_in_its_new_folder(run: Path) -> None:
    moved = run.rename(run.parent / "moved")
    assert config_to_resume(None, [], moved).output == str(moved)


def test_all_differences_are_refused_together_with_both_values(run: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    given = ["data.fold=1", "data.shots=null", "plan.token_stride=4", "plan.patch_size=[8,32,32]", "device=cpu"]
    with pytest.raises(ConfigError) as error:
        config_to_resume({"train": {"lr": 0.001}}, given, run)
    assert str(error.value).splitlines()[1:] == [
        f"  file: {run / 'config.yaml'}",
        "  found: 5:",
        "    data.fold: the run has 0, given 1",
        "    data.shots: the run has 3, given null",
        "    plan.token_stride: the run has 8, given 4",
        "    plan.patch_size: the run has null, given [8, 32, 32]",
        "    train.lr: the run has 0.002, given 0.001",
        "  hint: leave these settings out to continue with those of the run, or start a new run with another output=",
    ]
    assert (run / "config.yaml").read_bytes() == before


def other(value: Any) -> Any:
    """Another value; it need not be valid."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"other than {value}"


@pytest.mark.parametrize("key", [setting.key for setting in settings() if setting.key != "plan"])
def test_every_setting_is_compared(key: str) -> None:
    section, _, name = key.rpartition(".")
    before, after = Config(), Config()
    part = getattr(after, section) if section else after
    object.__setattr__(part, name, other(getattr(part, name)))  # past the checks of values
    found = changes(before, after)
    assert [change.key for change in found] == [key]
    if key in MAY_CHANGE:
        refuse_changes(found, Path())
    else:
        with pytest.raises(ConfigError, match=f"{key}: the run has"):
            refuse_changes(found, Path())


def test_two_run_folders_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="different folders"):
        config_to_resume(None, [f"output={tmp_path / 'else'}"], run)
    assert config_to_resume(None, [f"output={run}"], run).output == str(run)


def test_without_a_checkpoint_the_run_starts_anew_as_it_is_given(run: Path, tmp_path: Path) -> None:
    (run / "checkpoint" / "last.pt").unlink()
    assert config_to_resume(None, [f"output={run}", "data.fold=1"]) == Config(
        output=str(run), data=load_config(None, ["data.fold=1"]).data
    )
    assert config_to_dict(config_to_resume(None, ["data.fold=1"], run))["train"]["lr"] == 0.002
    with pytest.raises(ConfigError, match="no run in this folder"):
        config_to_resume(None, [], tmp_path / "none")


def test_a_run_without_its_configuration_is_an_error_with_a_hint(run: Path) -> None:
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"configuration of the run is missing(.|\n)*config\.yaml(.|\n)*hint"):
        config_to_resume(None, [], run)


def test_the_log_says_what_becomes_of_the_learning_rate(caplog: pytest.LogCaptureFixture) -> None:
    settings = ["train.lr=0.01", "train.warmup_fraction=0"]
    before, after = (load_config(None, [*settings, f"train.max_steps={steps}"]) for steps in (10, 20))
    with caplog.at_level(logging.INFO):
        log_changes(changes(before, after), before, after, step=10, elapsed_s=1.0)
    assert "train.max_steps: 10 until now, 20 from here on (the end of a run" in caplog.text
    assert "learning rate 0.00e+00, that of the new one 5.00e-03" in caplog.text
    caplog.clear()
    log_changes([Change("data.workers", 2, 0)], before, before, step=10, elapsed_s=1.0)
    assert "learning rate" not in caplog.text


@pytest.mark.parametrize(
    ("end", "done", "hint"),
    [("train.max_steps=4", (5, 1.0), "train.max_steps=5"), ("train.max_minutes=1", (5, 61.0), "train.max_minutes=1.1")],
)
def test_an_end_before_what_is_done_is_refused(end: str, done: tuple[int, float], hint: str) -> None:
    before, after = load_config(None, OWN), load_config(None, [*OWN, "train.max_steps=null", end])
    found = changes(before, after)
    with pytest.raises(ConfigError, match=f"beyond this end(.|\\n)*{hint} ends it here"):
        refuse_earlier_end(found, after, *done)
    refuse_earlier_end(found, after, 4, 60.0)
    refuse_earlier_end([], before, 11, 60.0)  # minutes are exceeded by a part of a step
