"""Every document that volseg reads, malformed in every way: read, or refused by an error that names the file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.made.prepared_cases import made_plan
from volseg.config.load import load_config
from volseg.data.split_files import read_run_split
from volseg.errors import ConfigError, VolsegError
from volseg.evaluation.sources import read_case_names
from volseg.inference.cohort.history import read_history, repair
from volseg.io.array_folder import read_description as read_array_folder
from volseg.io.datasets import read_dataset
from volseg.io.description import read_description
from volseg.io.json_files import encoded, read_json
from volseg.io.model_file import read_metadata
from volseg.planning.plan import Plan
from volseg.training.run_log import RunLog

PLAN = made_plan()


@dataclass(frozen=True)
class Document:
    """A document with a reader.

    Attributes:
        name: File name.
        content: Valid content, as plain values.
        read: Reads the file; the error must name it.
        lines: The file holds a value a line, and damaged lines are skipped with a warning instead.
    """

    name: str
    content: Any
    read: Callable[[Path], Any]
    lines: bool = False


def read_model_metadata(path: Path) -> Any:
    """Put the text into a model file, and read that."""
    from safetensors.torch import save_file

    text = path.read_bytes().decode("utf-8", "surrogateescape")
    with suppress(UnicodeEncodeError):  # cannot be in a header
        save_file({"a": torch.zeros(1)}, path, metadata={"volseg": text})
        return read_metadata(path)


def read_history_file(path: Path) -> Any:
    repair(path)
    return read_history(path)


MODEL = {
    "format": 1,
    "config": {"model": {"encoder": "identity"}},
    "plan": PLAN.to_dict(),
    "labels": PLAN.labels,
    "training": {"step": 3, "best_dice": 0.5},
}
DATASET = {
    "name": "Test",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver"},
    "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
}
DOCUMENTS = {
    "dataset": Document("dataset.json", DATASET, read_description),
    "data set folder": Document("dataset.json", DATASET, lambda path: read_dataset(path.parent)),
    "nnU-Net": Document(
        "dataset.json",
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "numTraining": 1, "file_ending": ".nii.gz"},
        read_description,
    ),
    "plan": Document("plan.json", PLAN.to_dict(), Plan.load),
    "split": Document("splits.json", {"fold": 0, "train": ["a", "b"], "val": ["c"]}, read_run_split),
    "case names": Document("splits.json", {"fold": 0, "train": ["a"], "val": ["c", "d"]}, read_case_names),
    "model": Document("model.safetensors", MODEL, read_model_metadata),
    "cached case": Document("meta.json", {"files": {}, "crc32": "0"}, lambda path: read_array_folder(path.parent)),
    "provenance": Document("provenance.json", {"weights_sha256": None}, lambda path: read_json(path, "provenance")),
    "configuration": Document("c.yaml", {"train": {"lr": 0.001, "max_steps": 3}, "data": {"fold": 1}}, load_config),
    "metrics": Document(
        "metrics.jsonl",
        {"step": 1, "loss": 0.5, "lr": 0.1, "elapsed_s": 1.0},
        lambda p: RunLog(p.parent, 9),
        lines=True,
    ),
    "records": Document(
        "records.jsonl", {"case": "a", "status": "done", "outputs": {"a.nii.gz": "0"}}, read_history_file, lines=True
    ),
}
MALFORMED: dict[str, Callable[[str], bytes]] = {
    "empty": lambda text: b"",
    "text": lambda text: b"hello",
    "list": lambda text: b"[1, 2]",
    "number": lambda text: b"3",
    "null": lambda text: b"null",
    "cut off": lambda text: text.encode()[: len(text) // 2],
    "nested": lambda text: b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "nested mappings": lambda text: b'{"labels": ' * 200 + b"1" + b"}" * 200,
    "digits": lambda text: b'{"format": ' + b"1" * 5_000 + b"}",
    "large": lambda text: b'{"format": 1' + b"0" * 400 + b', "step": 1' + b"0" * 400 + b"}",
    "infinite": lambda text: b'{"step": 1e999, "spacing_mm": [1e999, 1, 1]}',
    "NaN": lambda text: b'{"step": NaN, "train": {"lr": NaN}}',
    "UTF-16": lambda text: text.encode("utf-16"),
    "not UTF-8": lambda text: text.encode()[:-2] + b"\xff\xfe\xfd" + text.encode()[-2:],
    "NUL": lambda text: b"\0" * 30,
    "key twice": lambda text: b'{"name": "a", "name": "b"}',
}


@pytest.mark.parametrize("how", MALFORMED)
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_malformed_document_is_refused_by_name(kind: str, how: str, tmp_path: Path) -> None:
    document = DOCUMENTS[kind]
    path = tmp_path / document.name
    path.write_bytes(MALFORMED[how](json.dumps(document.content)))
    may_be_read = document.lines or (kind == "provenance" and how in ("list", "number", "null"))
    may_be_read |= kind == "configuration" and how == "empty"  # all defaults
    may_be_read |= kind == "model" and how in ("not UTF-8", "UTF-16")  # a header of safetensors is always UTF-8
    if may_be_read:
        document.read(path)
        return
    with pytest.raises(VolsegError) as caught:
        document.read(path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", ["dataset", "nnU-Net", "plan", "split", "case names", "provenance", "configuration"])
def test_a_byte_order_mark_is_skipped(kind: str, tmp_path: Path) -> None:
    """In documents that people edit."""
    document = DOCUMENTS[kind]
    (tmp_path / document.name).write_bytes(b"\xef\xbb\xbf" + json.dumps(document.content).encode())
    document.read(tmp_path / document.name)


WRONG = [None, True, -1, 0.5, 1e300, 2**62, "", "x", "\0", "\ud800", [], [[]], {}, {"a": 1}, [None], ["a"], "a" * 300]


def mutated(value: Any, rng: random.Random) -> Any:
    """Return plain values with one of them replaced, removed or moved."""
    path: list[Any] = []
    inner = value
    while isinstance(inner, dict | list) and inner and (not path or rng.random() < 0.8):
        key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        path.append((inner, key))
        inner = inner[key]
    container, key = path[-1]
    if rng.random() < 0.25:
        del container[key]
    elif isinstance(container, dict) and rng.random() < 0.15:
        container[rng.choice(["x", "", "1", "-1", "\0"])] = container.pop(key)
    else:
        container[key] = copy.deepcopy(rng.choice(WRONG))
    return value


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_any_change_of_a_document_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    """Wrong types, missing and unknown keys, one to three in each of 60 documents; no other exception."""
    document, rng = DOCUMENTS[kind], random.Random(kind)
    path = tmp_path / document.name
    for number in range(60):
        content = json.loads(json.dumps(document.content))
        for _ in range(rng.randint(1, 3)):
            content = mutated(content, rng) if content else content
        path.write_bytes(encoded(json.dumps(content)))
        try:
            document.read(path)
        except VolsegError as error:
            assert str(tmp_path) in str(error), (number, content)  # noqa: PT017


def test_no_interpolation_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "from the environment")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"output": "${oc.env:SECRET}"}))
    nested = {"plan": {"spacing_mm": ["${seed}", 1, 1]}}
    for source, overrides, key in (
        (tmp_path / "c.yaml", (), "output"),
        (None, ("output=${oc.env:SECRET}",), "output"),
        (None, ("data.root=runs/${seed}",), r"data\.root"),
        (nested, (), r"plan"),
    ):
        with pytest.raises(ConfigError, match=rf"'{key}[\w.]*' holds an interpolation") as caught:
            load_config(source, overrides)
        assert "from the environment" not in str(caught.value)


def test_aliases_are_refused(tmp_path: Path) -> None:
    """Nine levels of nine aliases stand for 387 million values."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (tmp_path / "c.yaml").write_text("\n".join(levels))
    with pytest.raises(ConfigError, match=r"alias \*a0"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("name", ["..", ".", " . ", "x" * 201, "a\nb", "a\0", 3, ["a"]])
def test_names_of_data_sets_that_cannot_be_file_names(name: object, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET | {"name": name}))
    with pytest.raises(VolsegError, match=r'"name" in dataset\.json') as caught:
        read_description(tmp_path)
    assert caught.value.file == str(tmp_path / "dataset.json")
    with pytest.raises(ConfigError, match=r"plan\.dataset"):
        Plan.from_dict(PLAN.to_dict() | {"dataset": name})
