from __future__ import annotations

import pytest

from volseg.config.load import load_config
from volseg.config.reference import attribute_docs, settings
from volseg.config.schema import Config


def test_every_setting_is_listed_once() -> None:
    keys = [setting.key for setting in settings()]
    assert len(keys) == len(set(keys))
    assert {"output", "plan", "data.root", "model.encoder", "augment.gamma", "train.lr", "postprocess.fill_holes"} <= {
        *keys
    }
    assert not {"data", "model", "train"} & {*keys}  # sections are not settings


def test_a_setting_has_type_default_and_meaning() -> None:
    (setting,) = [setting for setting in settings() if setting.key == "train.max_minutes"]
    assert setting.type == "float | None"
    assert setting.default == "null"
    assert setting.meaning == "Minutes of training and validation; preprocessing does not count."
    assert all(setting.meaning for setting in settings())


def test_defaults_are_accepted_by_the_configuration() -> None:
    """The listed text of every default is what ``key=value`` takes, and changes nothing."""
    overrides = [f"{setting.key}={setting.default}" for setting in settings()]
    assert load_config(None, overrides) == Config()


@pytest.mark.parametrize("word", ["CACHE", "cache"])
def test_a_word_selects_by_key_or_meaning(word: str) -> None:
    keys = [setting.key for setting in settings(word)]
    assert "data.cache_tokens" in keys
    assert "train.lr" not in keys


def test_texts_over_several_lines_are_joined() -> None:
    class Documented:
        """Summary.

        Attributes:
            first: One
                two.
            second: Three: four.

        Raises:
            other: Not an attribute.
        """

    assert attribute_docs(Documented) == {"first": "One two.", "second": "Three: four."}
