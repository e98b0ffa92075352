from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggrid3d
from scipy import ndimage
from torch import Tensor

from volseg.data.transforms import BIAS_TERMS, bias_field, blur, gamma, noise

COEFFICIENTS = np.random.default_rng(0).uniform(-0.2, 0.2, (3, 20)).tolist()
SINGLE = {
    "noise": (noise, [(0.1, 1), (0.2, 2), (0.0, 3)]),
    "blur": (lambda image, sigmas: blur(image, sigmas, (2.0, 1.0, 1.2)), [0.5, 0.9, 0.7]),
    "gamma": (gamma, [0.7, 1.5, 1.0]),
    "bias_field": (bias_field, COEFFICIENTS),
}


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", SINGLE)
def test_samples_of_a_batch_are_independent_and_the_input_is_kept(name: str) -> None:
    transform, values = SINGLE[name]
    image = images(3, 2, 7, 12, 9)
    before = image.clone()
    changed = transform(image, values)
    assert torch.equal(image, before)
    assert (changed.shape, changed.dtype) == (image.shape, torch.float32)
    for number, value in enumerate(values):
        assert torch.equal(transform(image[number : number + 1], [value])[0], changed[number])


@pytest.mark.parametrize("shape", [(42, 56, 40), (1, 300, 200)])
@pytest.mark.parametrize("name", SINGLE)
def test_threads_do_not_matter(name: str, shape: tuple[int, int, int]) -> None:
    """Patches are augmented by workers of one thread, or in the process of the training."""
    transform, values = SINGLE[name]
    image, threads, results = images(1, 1, *shape), torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        results.append(transform(image, values[:1]))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_noise_has_the_given_strength_and_follows_its_seed() -> None:
    zeros = torch.zeros(2, 1, 20, 30, 30)
    changed = noise(zeros, [(0.2, 1), (0.1, 2)])
    for sample, deviation in zip(changed, (0.2, 0.1), strict=True):
        assert float(sample.std()) == pytest.approx(deviation, rel=0.03)
        assert float(sample.mean()) == pytest.approx(0.0, abs=0.01)
        assert float((sample.abs() < deviation).float().mean()) == pytest.approx(0.683, abs=0.02)
    assert not torch.equal(noise(zeros[:1], [(0.2, 2)])[0], changed[0])
    torch.testing.assert_close(noise(zeros[:1] + 5, [(0.2, 1)])[0], changed[0] + 5)


def test_blur_has_the_known_kernel() -> None:
    """A point becomes the product of Gaussians that are cut off at 4 sigma; slices of 9 mm are too far away."""
    point = torch.zeros(1, 1, 3, 13, 13)
    point[0, 0, 1, 6, 6] = 1
    blurred = blur(point, [1.0], (9.0, 1.0, 2.0))[0, 0]
    row = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    column = np.exp(-0.5 * (2 * np.arange(-2, 3)) ** 2)
    expected = np.outer(row / row.sum(), column / column.sum())
    np.testing.assert_allclose(blurred[1, 2:11, 4:9], expected, atol=1e-7)
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-6)
    assert torch.count_nonzero(blurred[[0, 2]]) == 0


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (6.0, 1.2, 1.0), (0.1, 0.5, 0.3)])
def test_blur_is_scipy_s(spacing_mm: Any) -> None:
    """Also where the kernel is longer than the image, which is mirrored several times."""
    image = images(1, 2, 3, 12, 9)
    blurred = blur(image, [0.8], spacing_mm)
    for channel, expected in zip(image[0].double().numpy(), blurred[0], strict=True):
        np.testing.assert_allclose(
            expected, ndimage.gaussian_filter(channel, [0.8 / spacing for spacing in spacing_mm]), atol=1e-6
        )
    constant = torch.full((1, 1, 6, 9, 9), 3.0)
    torch.testing.assert_close(blur(constant, [0.8], spacing_mm), constant)


def test_gamma_by_hand() -> None:
    """0, 1, 2 are 0, 1/4, 1 after squaring, of mean 5/12 and deviation sqrt(13/48); mean and deviation 1 come back."""
    changed = gamma(torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 1, 3), [2.0]).flatten()
    expected = (np.array([0, 1 / 4, 1]) - 5 / 12) / np.sqrt(13 / 48) + 1
    np.testing.assert_allclose(changed, expected, rtol=1e-6)


@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_keeps_order_mean_and_deviation(exponent: float) -> None:
    image = images(1, 2, 6, 10, 10) * torch.tensor([1.0, 5.0]).view(1, 2, 1, 1, 1)
    for before, after in zip(image[0], gamma(image, [exponent])[0], strict=True):
        assert torch.equal(before.ravel().argsort(), after.ravel().argsort())
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-4)
        assert float(after.std()) == pytest.approx(float(before.std()), rel=1e-4)
    torch.testing.assert_close(gamma(image, [1.0]), image, atol=1e-5, rtol=1e-5)


def test_gamma_of_a_constant_patch_is_the_patch() -> None:
    constant = torch.full((1, 1, 4, 4, 4), -2.0)
    torch.testing.assert_close(gamma(constant, [1.5]), constant)


def test_the_bias_field_is_a_polynomial_as_numpy_computes_it() -> None:
    image = images(3, 2, 6, 8, 1)
    products = np.zeros((3, 4, 4, 4))
    products[:, BIAS_TERMS] = COEFFICIENTS
    for sample, changed, factors in zip(image.numpy(), bias_field(image, COEFFICIENTS).numpy(), products, strict=True):
        field = np.exp(leggrid3d(*(np.linspace(-1, 1, size) for size in (6, 8, 1)), factors))
        low = sample.min(axis=(1, 2, 3), keepdims=True)
        np.testing.assert_allclose(changed, (sample - low) * field + low, rtol=1e-5, atol=1e-5)


def test_the_bias_field_has_all_terms_up_to_degree_3_and_no_other() -> None:
    assert np.count_nonzero(BIAS_TERMS) == 20
    assert [BIAS_TERMS[index] for index in ((0, 0, 0), (1, 1, 1), (3, 0, 0), (0, 2, 1), (2, 2, 0), (1, 3, 0))] == [
        True, True, True, True, False, False,
    ]  # fmt: skip
