"""Regions from the data set's ``dataset.json`` to scored masks, through the commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.made.datasets import save_nifti
from volseg.cli.main import main

pytestmark = pytest.mark.usefixtures("no_pictures")

SHAPE = (24, 22, 12)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
TINY = ["model.encoder=identity", "model.features=4", "model.max_features=8", "plan.patch_size=[8,16,16]"]
TINY += ["train.batch_size=2", "train.validate_cases=0", "data.workers=0", "device=cpu", "precision=32"]
TINY += ["augment.affine=0", "augment.gamma=0"]
LABELS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright balls with a brighter core, in nnU-Net's layout; a corner of each label is ignored."""
    root = tmp_path_factory.mktemp("regions") / "Dataset001_Balls"
    rng = np.random.default_rng(0)
    for number in range(5):
        centre = np.array(SHAPE) / 2 + rng.uniform(-2, 2, 3)
        mm = (np.indices(SHAPE).T - centre) * (1, 1, 2)
        distance = np.linalg.norm(mm, axis=-1).T
        label = ((distance < 8).astype(np.uint8) + (distance < 5)).astype(np.uint8)
        image = (100 * label + rng.normal(0, 10, SHAPE)).astype(np.float32)
        label[:3, :3] = 3
        save_nifti(root / f"imagesTr/c{number}_0000.nii.gz", image, AFFINE)
        save_nifti(root / f"labelsTr/c{number}.nii.gz", label, AFFINE)
    content = {
        "channel_names": {"0": "T1"},
        "labels": LABELS,
        "regions_class_order": [1, 2],
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A run of a few seconds on four of the five cases, long enough that both regions are found."""
    folder = data.parent / "run"
    settings = [f"data.root={data}", "train.max_steps=60", "train.lr=0.02", "train.ema_decay=0.8", "train.loss=dice"]
    assert train(folder, *settings) == 0
    return folder


def train(folder: Path, *settings: str) -> int:
    return main(["train", "--config=gpu", f"output={folder}", *TINY, *settings])


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def dice(scores: Path) -> dict[str, list[float]]:
    """Dice of each class in a table of scores."""
    found: dict[str, list[float]] = {}
    with (scores / "cases.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["class"], []).append(float(row["dice"]))
    return found


def test_regions_are_trained_planned_predicted_and_scored(data: Path, run: Path, tmp_path: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    assert plan["labels"] == {"background": 0, "whole": 1, "core": 2}
    assert plan["regions"] == {"whole": [1, 2], "core": [2]}
    own = dice(run / "validation" / "scores")
    assert own.keys() == {"whole", "core"}
    assert min(own["whole"] + own["core"]) > 0.8
    images = [f"--input={data / 'imagesTr'}", f"--output={tmp_path / 'masks'}", "--device=cpu"]
    models = [f"--model={run}", f"--model={run / 'model.safetensors'}"]
    assert main(["predict", *models, *images, "--tta"]) == 0
    scores = [f"--pred={tmp_path / 'masks'}", f"--ref={data / 'labelsTr'}", f"--out={tmp_path / 'scores'}"]
    assert main(["evaluate", *scores, f"--dataset={data / 'dataset.json'}"]) == 0
    both = dice(tmp_path / "scores")
    assert len(both["core"]) == 5
    assert min(both["whole"] + both["core"]) > 0.8


def test_masks_are_painted_from_the_probabilities(data: Path, run: Path, tmp_path: Path) -> None:
    scan = [f"--model={run}", f"--input={data / 'imagesTr/c0_0000.nii.gz'}", "--device=cpu"]
    assert main(["predict", *scan, f"--output={tmp_path}", "--probabilities", "--uncertainty"]) == 0
    mask, probabilities = (voxels(next(tmp_path.glob(name))) for name in ("c0.nii.gz", "*probabilities*"))
    assert probabilities.shape == (*SHAPE, 2)
    expected = np.where(probabilities[..., 1] > 0.5, 2, np.where(probabilities[..., 0] > 0.5, 1, 0))
    assert np.array_equal(mask, expected)
    assert set(np.unique(mask)) == {0, 1, 2}
    inside = np.clip(probabilities.astype(np.float64), 1e-30, 1 - 1e-16)
    entropy = -(inside * np.log(inside) + (1 - inside) * np.log1p(-inside)).sum(axis=-1)
    np.testing.assert_allclose(voxels(next(tmp_path.glob("*uncertainty*"))), entropy, atol=1e-5)
    assert main(["predict", *scan, f"--output={tmp_path / 'split'}", "--split-classes"]) == 0
    assert np.array_equal(voxels(tmp_path / "split/c0/whole.nii.gz") != 0, mask > 0)
    assert np.array_equal(voxels(tmp_path / "split/c0/core.nii.gz") != 0, mask == 2)


def test_a_run_on_regions_is_resumed_and_starts_another(
    data: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["train", "--resume", str(run), "train.max_steps=61"]) == 0
    start = [f"data.root={data}", f"model.weights={run / 'model.safetensors'}", "data.fold=all", "train.max_steps=1"]
    assert train(tmp_path / "next", *start) == 0
    assert "starts anew" not in caplog.text
    assert train(tmp_path / "other", *start, "postprocess.fill_holes=all") == 2
