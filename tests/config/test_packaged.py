"""Configurations by name, and what is taken without one."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from volseg.cli.default_config import default_config
from volseg.config.load import given_values, load_config
from volseg.config.packaged import FOLDER, config_file, names
from volseg.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_names_are_files_of_the_package() -> None:
    assert names() == ["cpu", "demo", "gpu", "pretrain", "pretrain_cpu"]
    for name in names():
        assert load_config(name) == load_config(FOLDER / f"{name}.yaml") == load_config(ROOT / f"configs/{name}.yaml")
        assert given_values(name, []) == given_values(Path(name), []) != {}
    assert '"configs/*.yaml"' in (ROOT / "pyproject.toml").read_text()


def test_files_and_folders_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # as `make demo` leaves it
    assert config_file("demo") == FOLDER / "demo.yaml"
    (tmp_path / "mine").write_text("seed: 7")
    (tmp_path / "cpu.yaml").write_text("seed: 8")
    assert load_config("mine").seed == 7
    assert load_config("cpu.yaml").seed == load_config(tmp_path / "cpu.yaml").seed == 8


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "gpus",
            "no such configuration(.|\\n)*expected: cpu, demo, gpu, .*pretrain_cpu, or (.|\\n)*did you mean gpu",
        ),
        ("x" * 5000, "no such configuration"),
        ("a\0b", "no such configuration"),
        ("default", "did you mean gpu"),
        ("hippocampus", "did you mean cpu"),
        ("configs/default.yaml", "does not exist(.|\\n)*give gpu, without folder"),
        ("/elsewhere/configs/chaos_mr.yaml", "give cpu, without folder"),
        ("demo.yaml", "give demo, without folder"),
        ("mine/demo.yaml", "check the path"),
    ],
)
def test_names_that_do_not_exist(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_config(source)
    assert re.search(words, str(error.value))


@pytest.mark.parametrize(
    ("overrides", "cuda", "name"),
    [
        ([], True, "gpu"),
        ([], False, "cpu"),
        (["device=cpu", "seed=3"], True, "cpu"),
        (["device=cuda:1"], False, "gpu"),  # training says that there is no such device
        (["device=mps"], False, "cpu"),
    ],
)
def test_without_a_configuration_the_device_decides(
    overrides: list[str], cuda: bool, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    caplog.set_level(logging.INFO)
    assert default_config(overrides) == name
    assert f"the configuration {name} is taken" in caplog.text
