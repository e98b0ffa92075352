"""Prediction from files and arrays, and its errors. ``test_geometry_proof.py`` tests the geometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from volseg import load
from volseg.config.schema import ModelConfig
from volseg.device import choose_device
from volseg.errors import ConfigError, DataError, GeometryError, ModelFileError
from volseg.inference.predictor import Predictor
from volseg.io.model_file import save_model
from volseg.models.build import build_model
from volseg.planning.plan import Plan

Build = Callable[..., nn.Module]
MakePlan = Callable[..., Plan]
Image = nibabel.Nifti1Image
SETTINGS = {"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8}


@pytest.fixture
def predictor(make_plan: MakePlan, nearest_model: nn.Module) -> Predictor:
    return Predictor.from_model(nearest_model, make_plan(), device="cpu")


@pytest.fixture
def model_file(tmp_path: Path, make_plan: MakePlan, build: Build) -> Path:
    path = tmp_path / "model.safetensors"
    write_model(path, build(make_plan()), make_plan())
    return path


def write_model(path: Path, model: nn.Module, plan: Plan, **settings: Any) -> None:
    config = {"model": {**SETTINGS, **settings}, "seed": 0}
    save_model(path, model.state_dict(), {"config": config, "plan": plan.to_dict(), "labels": plan.labels})


def saved(image: Image, path: Path) -> Path:
    nibabel.save(image, path)
    return path


def foreground_agreement(mask: NDArray[Any], reference: NDArray[Any]) -> float:
    foreground = (mask > 0) | (reference > 0)
    return float((mask == reference)[foreground].mean())


def test_blocks_are_segmented_in_place(predictor: Predictor, scan: Image, tmp_path: Path) -> None:
    mask = predictor.predict(saved(scan, tmp_path / "scan.nii.gz"))
    assert mask.labels.shape == scan.shape
    assert np.array_equal(mask.grid.affine, scan.affine)
    assert tuple(np.unique(mask.labels)) == (0, 205, 500, 600)
    truth = np.array([0, 205, 500, 600])[np.rint(np.asanyarray(scan.dataobj) / 100).astype(int)]
    assert foreground_agreement(mask.labels, truth) > 0.8  # noise is averaged at the borders


def ct_scale() -> Any:
    from volseg.planning.channel import ChannelIntensity

    return ChannelIntensity(rule="ct", clip_low=-100.0, clip_high=400.0, mean=80.0, std=100.0)


def test_invalid_arrays(predictor: Predictor, scan: Image) -> None:
    data = np.asanyarray(scan.dataobj)
    with pytest.raises(DataError, match="needs an affine"):
        predictor.predict(data)
    for dtype in (complex, object, [("red", "u1"), ("green", "u1")]):
        with pytest.raises(DataError, match="real numbers"):
            predictor.predict(np.empty(data.shape, dtype), scan.affine)
    with pytest.raises(DataError, match="too large"):
        predictor.predict(np.where(data > 0, 1e300, 0), scan.affine)
    with pytest.raises(DataError, match="for arrays only"):
        predictor.predict("scan.nii.gz", scan.affine)
    with pytest.raises(DataError, match="number of axes"):
        predictor.predict(data[0], scan.affine)
    with pytest.raises(GeometryError):
        predictor.predict(data, np.zeros((4, 4)))
    with pytest.raises(DataError, match="wrong number of channels"):
        predictor.predict(np.stack([data, data]), scan.affine)
    with pytest.raises(DataError, match="same value"):
        predictor.predict(np.zeros_like(data), scan.affine)
    broken = data.astype(np.float32)
    broken[3, 3, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        predictor.predict(broken, scan.affine)


def test_channels_from_several_files(make_plan: MakePlan, build: Build, scan: Image, tmp_path: Path) -> None:
    plan = make_plan(channels=("T1", "T2"), intensity=(ct_scale(), ct_scale()))
    predictor = Predictor.from_model(build(plan, encoder="identity"), plan, device="cpu")
    data = np.asanyarray(scan.dataobj)
    files = [saved(Image(x, scan.affine), tmp_path / f"{n}.nii.gz") for n, x in enumerate((data, data[::-1]))]
    both = predictor.predict(files).labels
    assert np.array_equal(both, predictor.predict(np.stack([data, data[::-1]]), scan.affine).labels)
    assert not np.array_equal(both, predictor.predict(files[::-1]).labels)
    with pytest.raises(DataError, match="T1, T2"):
        predictor.predict(files[0])


def test_load_gives_the_trained_network(model_file: Path, make_plan: MakePlan, build: Build, scan: Image) -> None:
    loaded = load(model_file, device="cpu")
    assert loaded.plan == make_plan()
    data = np.asanyarray(scan.dataobj)
    expected = Predictor.from_model(build(make_plan()), make_plan(), device="cpu").predict(data, scan.affine)
    assert np.array_equal(loaded.predict(data, scan.affine).labels, expected.labels)


def test_encoder_weights_come_from_the_model_file(
    tmp_path: Path, make_plan: MakePlan, build: Build, scan: Image
) -> None:
    """The file that training read the weights from may be gone."""
    write_model(tmp_path / "m.safetensors", build(make_plan()), make_plan(), weights="/gone/dinov2.pth")
    mask = load(tmp_path / "m.safetensors", device="cpu").predict(np.asanyarray(scan.dataobj), scan.affine)
    assert mask.labels.shape == scan.shape


def test_weights_that_do_not_fit(tmp_path: Path, make_plan: MakePlan, build: Build) -> None:
    write_model(tmp_path / "m.safetensors", build(make_plan()), make_plan(), features=8)
    with pytest.raises(ModelFileError, match=r"do not fit(.|\n)*m\.safetensors"):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("config", "plan_changes", "message"),
    [
        ({"model": {"encoder": "resnet"}}, {}, "model.encoder"),
        ({"model": {**SETTINGS, "wings": 2}}, {}, "wings"),
        ({}, {}, "model"),
        ({"model": SETTINGS}, {"patch_size": "large"}, "patch_size"),
    ],
)
def test_invalid_settings_in_a_model_file(
    config: dict[str, Any], plan_changes: dict[str, Any], message: str, tmp_path: Path, make_plan: MakePlan
) -> None:
    plan = make_plan()
    state = build_model(ModelConfig(**SETTINGS), plan).state_dict()
    path = tmp_path / "m.safetensors"
    save_model(path, state, {"config": config, "plan": plan.to_dict() | plan_changes, "labels": plan.labels})
    with pytest.raises(ModelFileError, match=message):
        load(path)


def test_choice_of_the_device() -> None:
    assert choose_device("auto").type in {"cuda", "mps", "cpu"}
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="is not available"):
        choose_device("abacus")
    with pytest.raises(ConfigError, match="is not available"):
        choose_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="is not available"):
            choose_device("cuda")
