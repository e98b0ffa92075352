"""What a run is made with: the hash of the file it started from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from volseg.config.schema import Config, ModelConfig
from volseg.training import provenance


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
