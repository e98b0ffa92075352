"""From a file to a mask on its own grid: geometry above all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from torch import nn

from volseg import load
from volseg.config.schema import ModelConfig
from volseg.errors import ConfigError, DataError, GeometryError, ModelFileError
from volseg.inference.device import choose_device
from volseg.inference.predictor import Predictor
from volseg.io.model_file import save_model
from volseg.io.volumes import write_mask
from volseg.models.build import build_model
from volseg.planning.plan import Plan

Build = Callable[..., nn.Module]
MakePlan = Callable[..., Plan]
Image = nibabel.Nifti1Image
SETTINGS = {"encoder": "tiny", "weights": "random", "features": 4, "max_features": 8}
EVERY_ORDER = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]


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


def reordered(image: Image, order: tuple[int, ...], flips: tuple[int, ...]) -> tuple[Image, NDArray[Any]]:
    """The same scan with its axes in another order and direction, and what was done to them."""
    orientation = np.array(list(zip(order, flips, strict=True)))
    data = apply_orientation(np.asanyarray(image.dataobj), orientation)
    return Image(data, image.affine @ inv_ornt_aff(orientation, image.shape)), orientation


def foreground_agreement(mask: NDArray[Any], reference: NDArray[Any]) -> float:
    foreground = (mask > 0) | (reference > 0)
    return float((mask == reference)[foreground].mean())


def test_blocks_are_found_where_they_are(predictor: Predictor, scan: Image, tmp_path: Path) -> None:
    mask = predictor.predict(saved(scan, tmp_path / "scan.nii.gz"))
    assert mask.labels.shape == scan.shape
    assert np.array_equal(mask.grid.affine, scan.affine)
    assert mask.label_values == (0, 205, 500, 600)
    truth = np.array([0, 205, 500, 600])[np.rint(np.asanyarray(scan.dataobj) / 100).astype(int)]
    assert foreground_agreement(mask.labels, truth) > 0.8  # noise is averaged at the borders


@pytest.mark.parametrize("tta", [False, True])
def test_every_voxel_order_gives_the_same_anatomy(
    tta: bool, make_plan: MakePlan, build: Build, scan: Image, tmp_path: Path
) -> None:
    """A network of noise answers differently to every turned or shifted input; the same answer means the same input."""
    plan = make_plan(intensity=(ct_scale(),), patch_size=(16, 32, 32), mirror_axes=(0, 2))
    predictor = Predictor.from_model(build(plan, encoder="identity"), plan, device="cpu")
    reference = predictor.predict(saved(scan, tmp_path / "scan.nii.gz"), tta=tta)
    assert len(reference.label_values) >= 3
    for order, flips in EVERY_ORDER[:: 7 if tta else 1]:
        turned, orientation = reordered(scan, order, flips)
        path = saved(turned, tmp_path / "turned.nii.gz")
        mask = predictor.predict(path, tta=tta)
        assert np.array_equal(mask.grid.affine, turned.affine)
        expected = apply_orientation(reference.labels, orientation)
        assert foreground_agreement(mask.labels, expected) >= 0.999


def ct_scale() -> Any:
    from volseg.planning.plan import ChannelIntensity

    return ChannelIntensity(rule="ct", clip_low=-100.0, clip_high=400.0, mean=80.0, std=100.0)


def oblique(scan: Image, shear: float) -> NDArray[np.float64]:
    """10 degrees about one axis, 8 about another, and shear; voxels as long as before."""
    a, b = np.deg2rad((10.0, 8.0))
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    directions = turn @ tilt @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]])
    affine = scan.affine.copy()
    affine[:3, :3] = directions / np.linalg.norm(directions, axis=0) @ affine[:3, :3]
    return affine


def with_affine(scan: Image, affine: NDArray[np.float64]) -> Image:
    return Image(np.asanyarray(scan.dataobj), affine)


def as_type(scan: Image, dtype: type) -> Image:
    return Image(np.asanyarray(scan.dataobj).astype(dtype), scan.affine)


def with_codes(image: Image, *, sform: int, qform: int) -> Image:
    image.set_qform(image.affine, code=qform)
    image.set_sform(image.affine, code=sform)
    return image


VARIANTS: dict[str, Callable[[Image], Image]] = {
    "float64": lambda scan: as_type(scan, np.float64),
    "int32": lambda scan: as_type(scan, np.int32),
    "big endian": lambda scan: Image(np.asanyarray(scan.dataobj), scan.affine, nibabel.Nifti1Header(endianness=">")),
    "oblique": lambda scan: with_affine(scan, oblique(scan, 0.0)),
    "oblique and sheared": lambda scan: with_affine(scan, oblique(scan, 0.06)),
    "qform only": lambda scan: with_codes(with_affine(scan, oblique(scan, 0.0)), sform=0, qform=1),
    "sform only": lambda scan: with_codes(with_affine(scan, oblique(scan, 0.06)), sform=2, qform=0),
}


def same_geometry(written: Path, source: Path) -> bool:
    before, after = nibabel.load(source), nibabel.load(written)
    return bool(after.shape == before.shape and after.affine.tobytes() == before.affine.tobytes())


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_headers_and_storage(
    variant: Callable[[Image], Image], predictor: Predictor, scan: Image, tmp_path: Path
) -> None:
    reference = predictor.predict(saved(scan, tmp_path / "scan.nii.gz")).labels
    source = saved(variant(scan), tmp_path / "variant.nii.gz")
    mask = predictor.predict(source)
    assert foreground_agreement(mask.labels, reference) >= 0.999
    write_mask(tmp_path / "mask.nii.gz", mask, source=source)
    assert same_geometry(tmp_path / "mask.nii.gz", source)
    assert np.array_equal(np.asanyarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj), mask.labels)


def test_scaled_storage(predictor: Predictor, scan: Image, tmp_path: Path) -> None:
    """Stored 2 x + 40 under slope 0.5 and intercept -20 is x."""
    reference = predictor.predict(saved(scan, tmp_path / "scan.nii")).labels
    stored = Image((2 * np.asanyarray(scan.dataobj) + 40).astype(np.int16), scan.affine)
    content = bytearray(saved(stored, tmp_path / "scaled.nii").read_bytes())
    content[112:120] = np.array([0.5, -20.0], "<f4").tobytes()
    (tmp_path / "scaled.nii").write_bytes(content)
    mask = predictor.predict(tmp_path / "scaled.nii")
    assert np.array_equal(mask.labels, reference)
    write_mask(tmp_path / "mask.nii.gz", mask, source=tmp_path / "scaled.nii")
    assert same_geometry(tmp_path / "mask.nii.gz", tmp_path / "scaled.nii")
    assert np.array_equal(np.asanyarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj), reference)


def test_an_array_is_a_scan(predictor: Predictor, scan: Image, tmp_path: Path) -> None:
    expected = predictor.predict(saved(scan, tmp_path / "scan.nii.gz"))
    data = np.asanyarray(scan.dataobj)
    for array in (data, data[None], data.astype(np.float32)):
        mask = predictor.predict(array, scan.affine)
        assert np.array_equal(mask.labels, expected.labels)
        assert mask.grid == expected.grid


def test_unusable_arrays(predictor: Predictor, scan: Image) -> None:
    data = np.asanyarray(scan.dataobj)
    with pytest.raises(DataError, match="needs an affine"):
        predictor.predict(data)
    with pytest.raises(DataError, match="not a volume"):
        predictor.predict(data[0], scan.affine)
    with pytest.raises(GeometryError):
        predictor.predict(data, np.zeros((4, 4)))
    with pytest.raises(DataError, match="other channels"):
        predictor.predict(np.stack([data, data]), scan.affine)
    with pytest.raises(DataError, match="same value"):
        predictor.predict(np.zeros_like(data), scan.affine)
    broken = data.astype(np.float32)
    broken[3, 3, 3] = np.nan
    with pytest.raises(DataError, match="NaN"):
        predictor.predict(broken, scan.affine)


def test_channels_from_several_files(make_plan: MakePlan, build: Build, scan: Image, tmp_path: Path) -> None:
    plan = make_plan(channels=("T1", "T2"), intensity=(ct_scale(), ct_scale()))
    predictor = Predictor.from_model(build(plan), plan, device="cpu")
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


def test_encoder_weights_are_not_looked_for_again(
    tmp_path: Path, make_plan: MakePlan, build: Build, scan: Image
) -> None:
    """The model file holds them; where training took them from need not exist any more."""
    write_model(tmp_path / "m.safetensors", build(make_plan()), make_plan(), weights="/gone/dinov2.pth")
    mask = load(tmp_path / "m.safetensors", device="cpu").predict(np.asanyarray(scan.dataobj), scan.affine)
    assert mask.labels.shape == scan.shape


def test_threads_share_a_predictor(model_file: Path, scan: Image) -> None:
    predictor = load(model_file, device="cpu")
    data = np.asanyarray(scan.dataobj)[:12, :12, :10].astype(np.float32)
    scans = [data, data[::-1], data[:, ::-1], 2 * data]
    alone = [predictor.predict(x, scan.affine).labels for x in scans]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda x: predictor.predict(x, scan.affine).labels, scans * 2))
    for mask, expected in zip(together, alone * 2, strict=True):
        assert np.array_equal(mask, expected)


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
def test_settings_that_are_not_valid(
    config: dict[str, Any], plan_changes: dict[str, Any], message: str, tmp_path: Path, make_plan: MakePlan
) -> None:
    plan = make_plan()
    state = build_model(ModelConfig(**SETTINGS), plan).state_dict()
    path = tmp_path / "m.safetensors"
    save_model(path, state, {"config": config, "plan": plan.to_dict() | plan_changes, "labels": plan.labels})
    with pytest.raises(ModelFileError, match=message):
        load(path)


def test_devices() -> None:
    assert choose_device("auto").type in {"cuda", "mps", "cpu"}
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no such device"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no such device"):
            choose_device("cuda")


@pytest.mark.data
def test_real_scan(data_root: Path, make_plan: MakePlan, build: Build) -> None:
    scan = data_root / "CT_example" / "ct_trunk_3mm.nii.gz"
    plan = make_plan(spacing_mm=(9.0, 9.0, 9.0), patch_size=(8, 32, 32), intensity=(ct_scale(),))
    mask = Predictor.from_model(build(plan, encoder="identity"), plan, device="cpu").predict(scan)
    image = nibabel.load(scan)
    assert mask.labels.shape == image.shape
    assert np.array_equal(mask.grid.affine, image.affine)
    assert set(mask.label_values) <= set(plan.label_values)
