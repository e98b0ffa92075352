from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.made.prepared_cases import made_plan
from volseg.config.schema import AugmentConfig
from volseg.data import augment
from volseg.data.augment import build_augmentation

OFF: dict[str, Any] = dict.fromkeys(("affine", "noise", "blur", "gamma", "bias_field", "mirror"), 0.0)
ONE = (1.0, 1.0, 1.0)


def config(**changes: float) -> AugmentConfig:
    return AugmentConfig(**OFF | changes)


@pytest.fixture
def patch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((2, 6, 14, 12), generator=generator)
    label = torch.randint(-1, 3, (6, 14, 12), generator=generator).to(torch.int8)
    return image, label


@pytest.mark.parametrize("name", ["affine", "noise", "blur", "gamma", "bias_field", "mirror"])
def test_each_transform_keeps_shape_and_type_and_the_input(patch: tuple[Tensor, Tensor], name: str) -> None:
    image, label = patch
    before = image.clone(), label.clone()
    torch.manual_seed(0)
    changed, moved = build_augmentation(made_plan(modality="mri"), config(**{name: 1.0}))(image, label)
    assert (changed.shape, changed.dtype) == (image.shape, torch.float32)
    assert (moved.shape, moved.dtype) == (label.shape, torch.int8)
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, image)
    assert torch.equal(moved, label) == (name in ("noise", "blur", "gamma", "bias_field"))
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_nothing_happens_at_probability_zero(patch: tuple[Tensor, Tensor]) -> None:
    image, label = build_augmentation(made_plan(modality="mri"), config())(*patch)
    assert torch.equal(image, patch[0])
    assert torch.equal(label, patch[1])


def test_torch_s_seed_decides_everything(patch: tuple[Tensor, Tensor]) -> None:
    everything = build_augmentation(made_plan(modality="mri"), config(**dict.fromkeys(OFF, 1.0)))
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        np.random.seed(len(results))  # noqa: NPY002 - must not matter
        results.append(everything(*patch)[0])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_it_pickles(patch: tuple[Tensor, Tensor]) -> None:
    everything = build_augmentation(made_plan(modality="mri"), config(**dict.fromkeys(OFF, 1.0)))
    copy = pickle.loads(pickle.dumps(everything))
    torch.manual_seed(0)
    first = everything(*patch)[0]
    torch.manual_seed(0)
    assert torch.equal(copy(*patch)[0], first)


@pytest.mark.parametrize("axes", [(), (0,), (2,), (0, 1, 2)])
def test_mirroring_follows_the_plan(patch: tuple[Tensor, Tensor], axes: tuple[int, ...]) -> None:
    image, label = build_augmentation(made_plan(mirror_axes=axes), config(mirror=1.0))(*patch)
    assert torch.equal(image, patch[0].flip([axis + 1 for axis in axes]))
    assert torch.equal(label, patch[1].flip(axes))


def test_mirroring_happens_half_of_the_time(patch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    mirror = build_augmentation(made_plan(mirror_axes=(2,)), config(mirror=0.5))
    assert 60 < sum(not torch.equal(mirror(*patch)[1], patch[1]) for _ in range(200)) < 140


def test_a_quarter_turn_in_plane_by_hand() -> None:
    image = torch.zeros(1, 3, 9, 9)
    image[0, 1, 2, 4] = 1
    moved, label = augment.affine(image, image[0].to(torch.int8), (7.0, 1.0, 1.0), ONE, (90.0, 0.0, 0.0))
    assert label.nonzero().tolist() == [[1, 4, 2]]
    assert moved[0, 1, 4, 2] == pytest.approx(1.0, abs=1e-4)
    assert moved.sum() == pytest.approx(1.0, abs=1e-3)


def test_rotation_is_in_millimetres() -> None:
    """A quarter turn about H takes what lay 4 voxels of 1 mm off along W to 1 voxel of 4 mm off along D."""
    label = torch.zeros(5, 3, 17, dtype=torch.int8)
    label[2, 1, 12] = 1
    _, moved = augment.affine(label[None].float(), label, (4.0, 1.0, 1.0), ONE, (0.0, 90.0, 0.0))
    depth, rows, columns = moved.nonzero().T
    assert set(depth.tolist()) in ({1}, {3})
    assert set(rows.tolist()) == {1}
    assert len(columns) == 4  # the 4 mm of the voxel's thickness
    assert abs(float(columns.float().mean()) - 8) <= 0.5


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_scaling_scales_about_the_centre(scale: float) -> None:
    label = torch.zeros(1, 41, 41, dtype=torch.int8)
    label[:, 15:26, 15:26] = 1
    _, moved = augment.affine(label[None].float(), label, ONE, (1.0, scale, scale), (0.0, 0.0, 0.0))
    rows = moved[0].any(1).nonzero().ravel()
    assert len(rows) == pytest.approx(11 * scale, abs=1.01)
    assert float(rows.float().mean()) == 20


def test_image_and_label_move_together(patch: tuple[Tensor, Tensor]) -> None:
    label = torch.zeros(12, 24, 24, dtype=torch.int8)
    label[3:9, 5:15, 6:18] = 1
    torch.manual_seed(1)
    moving = build_augmentation(made_plan(spacing_mm=(2.0, 1.0, 1.0)), config(affine=1.0, mirror=1.0))
    for _ in range(5):
        image, moved = moving(label[None].float(), label)
        assert ((image[0] > 0.5) == (moved == 1)).float().mean() > 0.97
        assert set(moved.unique().tolist()) <= {0, 1}


def test_thick_slices_turn_and_scale_in_plane_only() -> None:
    """Slices of different constant value stay in their places: nothing moves along D."""
    image = torch.arange(1.0, 7.0)[None, :, None, None].expand(1, 6, 16, 16).contiguous()
    thick = build_augmentation(made_plan(rotate_in_plane_only=True), config(affine=1.0))
    free = build_augmentation(made_plan(rotate_in_plane_only=False), config(affine=1.0))
    torch.manual_seed(0)
    for _ in range(5):
        inside = thick(image, image[0].to(torch.int8))[0][0, :, 6:10, 6:10]
        assert torch.allclose(inside, image[0, :, 6:10, 6:10], atol=1e-4)
    assert not torch.allclose(free(image, image[0].to(torch.int8))[0][0, :, 6:10, 6:10], image[0, :, 6:10, 6:10])


def test_noise_has_the_strength_it_was_asked_for() -> None:
    changed = augment.noise(torch.zeros(1, 20, 30, 30), std=0.2, seed=1)
    assert float(changed.std()) == pytest.approx(0.2, rel=0.03)
    assert float(changed.mean()) == pytest.approx(0.0, abs=0.01)
    assert not torch.equal(changed, augment.noise(torch.zeros(1, 20, 30, 30), std=0.2, seed=2))


def test_blur_keeps_constants_and_spares_thick_slices() -> None:
    constant = torch.full((1, 6, 9, 9), 3.0)
    assert torch.allclose(augment.blur(constant, 1.0, (5.0, 1.0, 1.0)), constant, atol=1e-5)
    point = torch.zeros(1, 7, 9, 9)
    point[0, 3, 4, 4] = 1
    blurred = augment.blur(point, 1.0, (5.0, 1.0, 1.0))
    assert float(blurred[0, 3].sum()) == pytest.approx(1.0, abs=0.01)  # next to nothing goes to other slices
    assert float(blurred[0, 3, 4, 4]) == pytest.approx(1 / (2 * np.pi), rel=0.05)


@pytest.mark.parametrize("log_gamma", [-0.35, 0.4])
def test_gamma_keeps_order_mean_and_spread(log_gamma: float) -> None:
    image = (
        torch.randn((2, 6, 10, 10), generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 5.0])[:, None, None, None]
    )
    changed = augment.gamma(image, log_gamma)
    for before, after in zip(image, changed, strict=True):
        assert torch.equal(before.ravel().argsort(), after.ravel().argsort())
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-4)
        assert float(after.std()) == pytest.approx(float(before.std()), rel=1e-4)
    assert torch.allclose(augment.gamma(image, 0.0), image, atol=1e-4)


def test_gamma_of_a_constant_patch_is_the_patch() -> None:
    assert torch.allclose(augment.gamma(torch.full((1, 4, 4, 4), -2.0), 0.4), torch.full((1, 4, 4, 4), -2.0))


def test_the_bias_field_is_smooth_positive_and_shared_by_channels() -> None:
    image = torch.rand((2, 16, 20, 20), generator=torch.Generator().manual_seed(0)) + 1
    image[:, 0, 0, 0] = 0  # the minimum, which stays
    field = augment.bias_field(image, seed=3) / image.clamp_min(1e-9)
    field = field[:, 1:]
    assert (field > 0).all()
    assert torch.allclose(field[0], field[1], atol=1e-4)
    assert float(field.diff(dim=-1).abs().max()) < 0.25 * float(field.max() - field.min())
    assert float(field.std()) > 0.02


def test_the_logarithm_of_the_bias_field_is_a_polynomial_of_degree_3() -> None:
    image = torch.ones((1, 6, 8, 9))
    image[0, 0, 0, 0] = 0
    log_field = augment.bias_field(image, seed=3)[0].double().flatten()[1:].log()
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in (6, 8, 9)), indexing="ij")
    products = np.polynomial.legendre.legvander3d(*axes, (4, 4, 4)).reshape(-1, 5**3)[1:]
    coefficients = np.linalg.lstsq(products, log_field.numpy(), rcond=None)[0].reshape(5, 5, 5)
    high = np.indices((5, 5, 5)).sum(axis=0) > 3
    assert np.abs(coefficients[high]).max() < 1e-5
    low, top = augment.BIAS_COEFFICIENTS
    assert low < coefficients.min() < 0.7 * low
    assert 0.7 * top < coefficients.max() < top
    assert np.count_nonzero(np.abs(coefficients) > 1e-4) == 20


def test_ct_has_no_bias_field(patch: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(build_augmentation(made_plan(modality="ct"), config(bias_field=1.0))(*patch)[0], patch[0])


def test_it_is_fast_enough() -> None:
    """Below 30 ms on average for a hippocampus patch (here with room for a busy machine)."""
    image, label = torch.randn(1, 42, 56, 40), torch.zeros(42, 56, 40, dtype=torch.int8)
    default = build_augmentation(made_plan(modality="mri", spacing_mm=ONE), AugmentConfig())
    default(image, label)
    begun_s = time.process_time()
    for _ in range(30):
        default(image, label)
    assert (time.process_time() - begun_s) / 30 < 0.06
