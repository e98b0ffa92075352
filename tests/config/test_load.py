from __future__ import annotations

import re
from pathlib import Path

import pytest

from volseg.config import packaged
from volseg.config.load import config_from_dict, config_to_dict, config_to_yaml, load_config
from volseg.config.origin import with_origin
from volseg.config.schema import Config
from volseg.errors import ConfigError

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos_mr.yaml"


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config(None) == Config()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 3\ntrain:\n  lr: 1e-4\n  max_minutes: 5\n")
    config = load_config(file, ["train.lr=2e-3", "data.root=/a b/ü", "plan.patch_size=[32,96,96]"])
    assert config.seed == 3
    assert config.train.lr == 2e-3
    assert config.data.root == "/a b/ü"
    assert config.plan == {"patch_size": [32, 96, 96]}
    assert (config.train.max_steps, config.train.max_minutes) == (None, 5.0)


@pytest.mark.parametrize(
    "text", ["run #2", "0123", "1e3", "on", "1:30", "2024_01", "%d", "!t", "a: b", "[x", "a=b", "it's", " x "]
)
def test_texts_are_taken_as_they_stand(text: str) -> None:
    config = load_config(None, [f"output={text}", f"data.root={text}", f"plan.file={text}", "plan.token_stride=4"])
    assert config.output == config.data.root == config.plan["file"] == text
    assert config.plan["token_stride"] == 4


def test_quotes_around_a_text_and_texts_that_are_none() -> None:
    config = load_config(
        {"data": {"root": "x", "cache": "y"}}, ["output='null'", 'model.weights="1 #"', "data.root=null"]
    )
    assert (config.output, config.model.weights, config.data.root) == ("null", "1 #", None)
    assert load_config(config, ["data.cache=", "output=None"]).data.cache is None
    with pytest.raises(ConfigError, match="output"):
        load_config(None, ["output="])


def test_the_later_stop_rule_replaces_the_earlier(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  max_minutes: 5\n")
    assert load_config(file, ["train.max_steps=7"]).train.max_minutes is None
    with pytest.raises(ConfigError, match="both"):
        load_config(file, ["train.max_steps=7", "train.max_minutes=2"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.encoder=tiny", "did you mean 'model'"),
        ("train.learning_rate=1", "did you mean 'train.lr'"),
        ("train.checkpoint_minutes=0", "train.checkpoint_minutes is out of range"),
        ("=3", "key=value"),
        ("data.fold=-1", "data.fold"),
        ("train.clip_norm=.inf", "train.clip_norm is out of range"),
        ("train.max_minutes=.nan", "train.max_minutes is out of range"),
        ("augment.rotation_degrees=.nan", "augment.rotation_degrees is out of range"),
        ("seed=-1", "seed is out of range"),
        ("plan=[1]", "group of keys"),
        ("[=1", "cannot be read"),
    ],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(None, [override])


@pytest.mark.parametrize("text", ["a: [1\n", "[" * 100])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(file)


def test_saved_and_stored_configurations_come_back(tmp_path: Path) -> None:
    config = load_config(None, ["train.max_steps=5", "plan.token_stride=4", "model.encoder=tiny"])
    (tmp_path / "c.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize("source", [*packaged.names(), CHAOS], ids=str)
def test_the_ready_configurations_are_valid(source: str | Path) -> None:
    config = load_config(source)
    assert (config.train.max_steps is None) != (config.train.max_minutes is None)


@pytest.mark.parametrize(
    ("text", "override", "origin"),
    [
        ("seed: 1\ntrain:\n  max_steps: 5\n  lr: fast\n", "seed=2", "FILE, line 4"),
        ("seed: 1\ntrain: {max_steps: 5, lr: -1}\n", "seed=2", "FILE, line 2"),
        ("train:\n  learning_rate: 1\n", "seed=2", "FILE, line 2"),
        ("modle: {}\n", "seed=2", "FILE, line 1"),
        ("seed: 1\ntrain: 3\n", "seed=2", "FILE, line 2"),
        ("seed: 1\n", "seed=-1", "command line"),
        ("train: {lr: 1}\n", "train.lr=fast", "command line"),
        ("train: {lr: -1}\n", "train.lr=-2", "command line"),
        ("train: {lr: 1}\n", "train={lr: -2}", "command line"),
        ("train: {max_steps: 5}\n", "train.learning_rate=2", "command line"),
        ("train:\n  max_steps: 5\n  max_minutes: 5\n", "seed=2", "FILE, line 2"),
    ],
)
def test_an_invalid_value_is_blamed_on_where_it_was_given(
    tmp_path: Path, text: str, override: str, origin: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert caught.value.file == origin.replace("FILE", str(file))


def test_errors_without_a_setting_that_was_given_stay_as_they_are() -> None:
    for problem in ("the scan is damaged", "train.lr is out of range", "seed"):
        error = ConfigError(problem)
        for source in ("gpu", "no such configuration", None):
            assert with_origin(error, source, ["data.root=x"]) is error
