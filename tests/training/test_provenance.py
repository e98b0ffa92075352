"""What a run is made with: the hash of the file it started from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from volseg.config.schema import Config, ModelConfig
from volseg.errors import ConfigError
from volseg.training import provenance
from volseg.training.resume import Change


@pytest.mark.parametrize("start", ["file", "random"])
def test_the_hash_of_the_weight_file(tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "data_hash", lambda _cases: "of the data")
    weights = tmp_path / "dinov2_vits14_pretrain.pth"
    weights.write_bytes(b"weights")
    config = Config(model=ModelConfig(weights=str(weights) if start == "file" else "random"))
    experiment = SimpleNamespace(config=config, folder=tmp_path, train_cases=(), resumed=False)
    counts = {"total": 2, "trainable": 1, "parts": {}}
    record = provenance.write_provenance(experiment, counts)  # also goes into the model file
    written = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    expected = hashlib.sha256(b"weights").hexdigest() if start == "file" else None
    assert record["weights_sha256"] == written["weights_sha256"] == expected
    weights.unlink()
    experiment.resumed = True
    assert provenance.write_provenance(experiment, counts)["weights_sha256"] == expected


def test_a_resumed_run_keeps_its_record_and_adds_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provenance, "data_hash", lambda _cases: "of the data")
    config = Config(device="cpu", precision="32", model=ModelConfig(weights="random"))
    experiment = SimpleNamespace(config=config, folder=tmp_path, train_cases=(), resumed=False)
    counts = {"total": 2, "trainable": 1, "parts": {}}
    first = provenance.write_provenance(experiment, counts)
    file = tmp_path / "provenance.json"
    file.write_text(json.dumps({**first, "precision": "bfloat16"}), encoding="utf-8")  # as on another device
    experiment.resumed = True
    provenance.write_provenance(experiment, counts, [Change("device", "cuda", "cpu")])
    assert "precision: bfloat16 at the start, float32 from here on" in caplog.text
    record = provenance.write_provenance(experiment, counts)
    assert record["created"] == first["created"]
    assert [now["changes"] for now in record["resumed"]] == [{"device": ["cuda", "cpu"]}, {}]
    assert json.loads(file.read_text(encoding="utf-8")) == record
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not the provenance of a run(.|\n)*provenance\.json"):
        provenance.write_provenance(experiment, counts)
