"""A fault of each kind is planted into a made data set: all are found, and nothing else."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import volseg
from tests.made.datasets import write_dataset
from volseg.cli.main import main
from volseg.io.findings import KINDS

SHAPE = (16, 18, 14)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MRI data set of small scans with an ellipsoid of two classes each."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    radius = np.linalg.norm(np.stack(np.meshgrid(*(np.linspace(-1.5, 1.5, n) for n in SHAPE), indexing="ij")), axis=0)
    for _ in range(60):
        own = radius + rng.normal(0, 0.01, SHAPE)  # no two labels are the same
        label = (own < rng.uniform(1.0, 1.2)).astype(np.uint8) + (own < 0.9)
        images.append((300.0 * label + rng.normal(200, 20, SHAPE)).astype(np.int16))
        labels.append(label.astype(np.uint8))
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    root = tmp_path_factory.mktemp("made")
    return write_dataset(root, images, labels, affine=affine, modality="MRI", names=("background", "rim", "core"))


def test_every_planted_fault_is_found_and_nothing_else(made: Path, tmp_path: Path, capsys) -> None:
    faults = import_module("trials.planted_faults")
    assert volseg.check(made, workers=0) == ()
    planted = faults.plant(made)
    assert len(planted) >= 25
    out = tmp_path / "findings.json"
    assert main(["plan", str(made), "--check-only", "--workers", "0", "--out", str(out)]) == 1
    findings = json.loads(out.read_text())["findings"]
    assert faults.compare(planted, findings) == {"missed": [], "invented": []}
    printed = capsys.readouterr().out
    for kind in planted:
        assert f"({kind}, 1 found)" in printed
        assert KINDS[kind].title in printed


def test_the_comparison_notices_what_is_missed_and_invented() -> None:
    compare = import_module("trials.planted_faults").compare
    planted = {"grid": Path("/l"), "shear": Path("/i")}
    found = (("grid", "/l"), ("grid", "/k"), ("constant", "/i"))
    findings = [{"kind": kind, "files": [file]} for kind, file in found]
    assert compare(planted, findings) == {"missed": ["shear"], "invented": ["grid: /k", "constant: /i"]}
