"""Model files: what is written comes back; whatever is not a model file is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from volseg.errors import ModelFileError, OutputError
from volseg.io.model_file import read_metadata, read_model, save_model
from volseg.io.model_folder import model_files_of, one_model_file

METADATA: dict[str, Any] = {
    "config": {"model": {"encoder": "tiny"}},
    "plan": {"spacing_mm": [1.0, 0.1 + 0.2, 1e-7]},
    "labels": {"background": 0, "Leber – lieu": 600},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run 1" / "model.safetensors"
    save_model(file, {"weight": torch.arange(6.0).view(2, 3)}, METADATA)
    return file


def write_raw(path: Path, document: object) -> Path:
    text = document if isinstance(document, str) else json.dumps(document)
    save_file({"weight": torch.zeros(1)}, path, metadata={"volseg": text})
    return path


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).to(torch.bfloat16),
        "steps": torch.tensor(7),
        "strided": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    metadata = METADATA | {"training": {"steps": 10}, "versions": {"volseg": "0.1.0"}, "postprocessing": {}}
    save_model(tmp_path / "m.safetensors", state, metadata)
    read, document = read_model(tmp_path / "m.safetensors")
    assert document == metadata | {"format": 1}
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_tensors_that_share_memory_are_kept_apart(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    save_model(tmp_path / "m.safetensors", {"all": base, "tied": base, "part": base[3:6]}, METADATA)
    state, _ = read_model(tmp_path / "m.safetensors")
    assert torch.equal(state["tied"], base)
    assert state["part"].tolist() == [3.0, 4.0, 5.0]


def test_metadata_is_plain_json_in_one_key(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        header = file.metadata()
    assert set(header) == {"format", "volseg"}
    assert json.loads(header["volseg"])["labels"] == METADATA["labels"]


def test_optional_parts_default_to_empty(path: Path) -> None:
    document = read_metadata(path)
    assert (document["postprocessing"], document["versions"], document["training"]) == ({}, {}, {})


def test_reading_metadata_does_not_import_torch(path: Path) -> None:
    code = (
        "import sys; from volseg.io.model_file import read_metadata;"
        "print(read_metadata(sys.argv[1])['labels']['background'], 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["0", "False"]


@pytest.mark.parametrize("reader", [read_model, read_metadata])
def test_missing_file_and_folder(reader: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such model file"):
        reader(tmp_path / "nowhere.safetensors")
    with pytest.raises(ModelFileError, match="a folder"):
        reader(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x05pickle", b"not a model file at all, only text" * 9])
def test_other_kinds_of_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match="damaged or not a volseg model"):
        read_model(file)


def test_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])
    size = path.stat().st_size
    with pytest.raises(ModelFileError, match=rf"shorter(.|\n)*found: {size} bytes\n  expected: {size + 5} bytes"):
        read_model(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelFileError, match="damaged"):
        read_model(path)


def test_weights_without_volseg_metadata(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "encoder.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="not a volseg model") as caught:
        read_model(tmp_path / "encoder.safetensors")
    assert "encoder.safetensors" in str(caught.value)


def test_newer_format(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"newer volseg(.|\n)*format 2"):
        read_model(write_raw(tmp_path / "m.safetensors", METADATA | {"format": 2}))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{not json", "not valid JSON"),
        ([1, 2], "without a format number"),
        ({"config": {}}, "without a format number"),
        ({"format": 1, "config": {}, "plan": {}}, "labels"),
        (METADATA | {"format": 1, "plan": "a string"}, "plan"),
        (METADATA | {"format": 1, "code": {}}, "code"),
        (METADATA | {"format": 1, "labels": {"background": 0, "liver": 0}}, "labels"),
        (METADATA | {"format": 1, "labels": {"liver": 1}}, "labels"),
        (METADATA | {"format": 1, "labels": {"background": 0, "liver": "1"}}, "labels"),
    ],
)
def test_damaged_metadata(document: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model(write_raw(tmp_path / "m.safetensors", document))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        METADATA | {"config": {"lr": float("nan")}},
        METADATA | {"plan": {"affine": np.eye(4)}},
        METADATA | {"optimizer": {}},
    ],
)
def test_unreadable_metadata_is_not_written(metadata: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        save_model(tmp_path / "m.safetensors", {"weight": torch.zeros(1)}, metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_model(path, {"weight": torch.zeros(1)}, METADATA)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(path: Path) -> None:
    with pytest.raises(OutputError):
        save_model(path / "below a file" / "m.safetensors", {"weight": torch.zeros(1)}, METADATA)


def test_folds_in_a_folder_are_an_ensemble(path: Path, tmp_path: Path) -> None:
    for number in (10, 2):
        (tmp_path / "cv" / f"fold_{number}").mkdir(parents=True)
        (tmp_path / "cv" / f"fold_{number}" / "model.safetensors").write_bytes(path.read_bytes())
    assert [file.parent.name for file in model_files_of(tmp_path / "cv")] == ["fold_2", "fold_10"]
    with pytest.raises(ModelFileError, match=r"several models(.|\n)*for example .*fold_2"):
        one_model_file(tmp_path / "cv")
    (tmp_path / "cv" / "crossval.json").write_text('{"members": [10]}')
    assert [file.parent.name for file in model_files_of(tmp_path / "cv")] == ["fold_10"]
    for damaged in ('{"members": ["10"]}', "[]", "{"):
        (tmp_path / "cv" / "crossval.json").write_text(damaged)
        with pytest.raises(ModelFileError, match=r"crossval\.json"):
            model_files_of(tmp_path / "cv")
