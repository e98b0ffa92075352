"""The scripts of ``examples/`` run as a user would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg.io.volumes import read_mask
from volseg.phantom import LABELS, write_phantoms

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = [
    "train.max_steps=2",
    "train.batch_size=1",
    "train.validate_every=2",
    "train.validate_cases=1",
    "data.workers=0",
    "device=cpu",
    "model.features=4",
    "plan.token_stride=8",
    "plan.patch_size=[8,48,48]",
]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 3, count_test=1)


def test_train_and_predict_an_array_and_a_folder(data: Path, tmp_path: Path) -> None:
    text = run("train_and_score.py", data, tmp_path / "run", *SMALL)
    assert "train: 2 of 2" in text
    assert "| liver " in text
    model = tmp_path / "run" / "model.safetensors"
    assert f"model: {model}" in text
    (scan,) = (data / "imagesTs").iterdir()
    text = run("predict_array.py", model, scan, tmp_path / "mask.nii.gz")
    mask = read_mask(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.grid.affine, nibabel.load(scan).affine, atol=1e-6)
    assert [line.split(":")[0] for line in text.splitlines()] == [name for name in LABELS if name != "background"]
    text = run("predict_folder.py", tmp_path / "run", scan.parent, tmp_path / "masks", "seg.nrrd")
    assert text.endswith(": done " + scan.name.replace(".nii.gz", ".seg.nrrd\n"))
    folder_mask = read_mask(tmp_path / "masks" / scan.name.replace(".nii.gz", ".seg.nrrd"))
    assert np.array_equal(folder_mask.labels, mask.labels)


def test_add_an_encoder(data: Path, tmp_path: Path) -> None:
    assert "| liver " in run("add_an_encoder.py", data, tmp_path / "run", *SMALL)
    assert "small_convnet" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_a_script_without_arguments_says_how_it_is_used(script: str) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"python examples/{script}" in done.stderr
