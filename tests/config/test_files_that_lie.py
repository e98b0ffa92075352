"""Documents with values that no reader expects are refused by an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from volseg.config.load import load_config
from volseg.errors import ConfigError, DataError, ModelFileError
from volseg.io.datasets import read_dataset
from volseg.io.model_file import read_metadata

DIGITS, DEEP = "9" * 5_000, "[" * 10_000 + "]" * 10_000


@pytest.mark.parametrize(
    "text",
    [
        "train: {lr: -1}",
        "augment: {blur: 20}",
        f"train: {{batch_size: 1{'0' * 400}}}",
        f"train: {{lr: 1{'0' * 400}}}",
        f"plan: {{patch_size: {DEEP}}}",
        f"seed: {DIGITS}",
    ],
    ids=["range", "probability", "integer", "number", "nesting", "digits"],
)
def test_an_invalid_configuration_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["train.weight_decay=0.1"])
    assert caught.value.file in (str(path), f"{path}, line 1")


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "${seed}", "a ${", "${x"])
def test_no_environment_variable_is_read(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "read")
    path = tmp_path / "run.yaml"
    path.write_text(f"output: '{value}'", encoding="utf-8")
    nested = {"plan": {"patch_size": [value]}}
    for source, overrides in ((path, []), (None, [f"output={value}"]), ({"output": value}, []), (nested, [])):
        with pytest.raises(ConfigError):
            load_config(source, overrides)


def test_an_invalid_override_does_not_blame_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {lr: 0.1}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train\.lr is out of range") as caught:
        load_config(path, ["train.lr=-1"])
    assert caught.value.file == "command line"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"labels": {"0": "background", DIGITS: "liver"}, "training": []}),
        json.dumps({"labels": {"0": "background"}, "training": [{"image": "x" * 9_999, "label": "y"}]}),
        f'{{"labels": {DEEP}}}',
    ],
    ids=["digits", "long name", "nesting"],
)
def test_an_invalid_dataset_json_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("document", [DEEP, f'{{"format": {DIGITS}}}'], ids=["nesting", "digits"])
def test_invalid_metadata_of_a_model_file_is_named(document: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"__metadata__": {"volseg": document}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelFileError) as caught:
        read_metadata(path)
    assert caught.value.file == str(path)
