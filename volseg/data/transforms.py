"""Changes of intensity of a batch of patches, on any device; each sample has its own parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from volseg.data.affine import Triple

SPACE = (2, 3, 4)
"""Axes of a batch (B, C, D, H, W) that are spatial."""
BIAS_TERMS = np.indices((4, 4, 4)).sum(axis=0) <= 3
"""Products of Legendre polynomials along (D, H, W) whose degrees add up to at most 3: 20 of them."""


def noise(image: Tensor, drawn: Sequence[tuple[float, int]]) -> Tensor:
    """Add Gaussian noise.

    Args:
        image: (B, C, D, H, W).
        drawn: Standard deviation and seed for each sample. The same seed gives other noise on a GPU than on a CPU.
    """
    added, generator = torch.empty_like(image), torch.Generator(image.device)
    for sample, (deviation, seed) in zip(added, drawn, strict=True):
        sample.normal_(0, deviation, generator=generator.manual_seed(seed))
    return added.add_(image)


def blur(image: Tensor, sigmas_mm: Sequence[float], spacing_mm: Triple) -> Tensor:
    """Blur with a Gaussian along every axis, as scipy's `gaussian_filter`: cut off at 4 sigma, mirrored at the border.

    It has little effect across thick slices.

    Args:
        image: (B, C, D, H, W).
        sigmas_mm: Width for each sample.
        spacing_mm: Voxel size (D, H, W).
    """
    for axis, spacing in zip(SPACE, spacing_mm, strict=True):
        kernels = [_half_kernel(sigma / spacing) for sigma in sigmas_mm]
        radius = max(map(len, kernels)) - 1
        if radius > 0:
            image = _convolved(_mirrored(image, axis, radius), axis, radius, kernels)
    return image


def _half_kernel(sigma: float) -> list[float]:
    """Return the weights of a Gaussian of a width in voxels, from the centre to one end."""
    steps = np.arange(int(4 * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    return (weights / (2 * weights.sum() - 1)).tolist()  # type: ignore[no-any-return]


def _mirrored(image: Tensor, axis: int, margin: int) -> Tensor:
    """Pad an axis on both sides: ``c b a | a b c d | d c b``, also over several lengths."""
    size = image.shape[axis]
    outside = torch.arange(2 * margin, device=image.device) - margin
    outside = torch.where(outside < 0, outside, outside + size) % (2 * size)
    sides = image.index_select(axis, torch.minimum(outside, 2 * size - 1 - outside))
    return torch.cat([sides.narrow(axis, 0, margin), image, sides.narrow(axis, margin, margin)], axis)


def _convolved(padded: Tensor, axis: int, margin: int, kernels: Sequence[Sequence[float]]) -> Tensor:
    """Convolve each sample along an axis with its symmetric kernel and take off the margin."""
    size = padded.shape[axis] - 2 * margin
    result = torch.empty_like(padded.narrow(axis, margin, size), memory_format=torch.contiguous_format)
    for target, sample, (center, *others) in zip(result, padded, kernels, strict=True):
        torch.mul(sample.narrow(axis - 1, margin, size), center, out=target)
        for step, weight in enumerate(others, start=1):
            for start in (margin - step, margin + step):
                target.add_(sample.narrow(axis - 1, start, size), alpha=weight)
    return result


def gamma(image: Tensor, exponents: Sequence[float]) -> Tensor:
    """Raise each channel, scaled to 0..1, to a power; its mean and standard deviation are restored.

    Source: Isensee et al., nnU-Net (2021), supplementary note 4 (gamma with retained statistics).

    Args:
        image: (B, C, D, H, W).
        exponents: Exponent for each sample.
    """
    low, high = image.amin(SPACE, keepdim=True), image.amax(SPACE, keepdim=True)
    unit = (image - low).div_((high - low).clamp_min(1e-6)).clamp_(0, 1)
    curved = unit.log_().mul_(_each(exponents, image)).exp_()  # torch's pow rounds differently with other threads
    mean, curved_mean = _mean(image), _mean(curved)
    spread = _norm(image - mean) / _norm(curved.sub_(curved_mean)).clamp_min(1e-6)
    return curved.mul_(spread).add_(mean)


def bias_field(image: Tensor, coefficients: Sequence[Sequence[float]]) -> Tensor:
    """Multiply the intensities above each channel's minimum by a smooth field, the same for all channels.

    The logarithm of the field is a polynomial of degree 3, as in MONAI's `RandBiasField`.

    Source: Van Leemput et al., Automated model-based bias field correction of MR images of the brain, IEEE TMI 1999.

    Args:
        image: (B, C, D, H, W).
        coefficients: For each sample those of the products of Legendre polynomials, in the order of `BIAS_TERMS`.
    """
    products = np.zeros((len(coefficients), *BIAS_TERMS.shape), dtype=np.float32)
    products[:, BIAS_TERMS] = coefficients
    factors = torch.from_numpy(products).to(image.device, non_blocking=True)
    for axis in (3, 2, 1):
        factors = _polynomials(factors, axis, image.shape[axis + 1])
    field = factors.exp_()  # (B, D, H, W)
    low = image.amin(SPACE, keepdim=True)
    return (image - low).mul_(field[:, None]).add_(low)


def _polynomials(factors: Tensor, axis: int, size: int) -> Tensor:
    """Replace the factors of Legendre polynomials of degree 0 to 3, along an axis, by their sum at points from -1 to 1.

    This is no product of matrices, whose rounding depends on the number of samples.
    """
    x = torch.linspace(-1, 1, size, dtype=factors.dtype, device=factors.device)
    x = x.view(-1, *(1,) * (3 - axis))
    constant, *others = factors.tensor_split(4, axis)
    total = torch.add(constant, torch.zeros_like(x))
    for factor, polynomial in zip(others, (x, (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2), strict=True):
        total.addcmul_(factor, polynomial)
    return total


def _each(values: Sequence[float], image: Tensor) -> Tensor:
    """Return a value for each sample, (B, 1, 1, 1, 1); nothing waits for the device."""
    return torch.tensor(values).view(-1, 1, 1, 1, 1).to(image.device, image.dtype, non_blocking=True)


def _mean(image: Tensor) -> Tensor:
    """Return the mean of each channel; axis by axis, which gives the same for any number of threads."""
    return image.mean(4, keepdim=True).mean(3, keepdim=True).mean(2, keepdim=True)


def _norm(image: Tensor) -> Tensor:
    """Return the norm of each channel, as `_mean`."""
    norms: Tensor = torch.linalg.vector_norm(image, dim=4, keepdim=True)
    return norms.square().sum(3, keepdim=True).sum(2, keepdim=True).sqrt()
