"""Random augmentation of training patches: what happens to a sample is drawn first, and applied to batches later.

Drawing takes a random generator, so that a sample is the same on every device, for any number of workers and in a
resumed run. Applying draws nothing but the noise, from a seed that was drawn, and nothing in it waits for a GPU.

Median milliseconds of a patch on one thread of a CPU, and TorchIO's (of the bias field numpy's), as measured by
`benchmarks/augmentation.py`:

| transform | 42 x 56 x 40 | TorchIO | 26 x 160 x 160, in plane | TorchIO |
| --- | ---: | ---: | ---: | ---: |
| affine | 2.1 | 5.2 | 5.0 | 25 |
| noise | 0.3 | 0.7 | 1.8 | 2.9 |
| blur | 0.7 | 1.2 | 2.1 | 8.5 |
| gamma | 0.4 | 0.8 | 1.9 | 3.8 |
| bias field | 0.4 | 0.6 | 1.4 | 3.9 |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from volseg.config.schema import AugmentConfig
from volseg.data.affine import Motion, Triple, affine
from volseg.data.transforms import BIAS_TERMS, bias_field, blur, gamma, noise
from volseg.planning.plan import Plan

NOISE_STD = (0.0, 0.25)
"""Standard deviation of the noise, in standard deviations of the normalised image."""
BLUR_SIGMA_VOX = (0.5, 1.0)
"""Width of the blur, in in-plane voxels."""
LOG_GAMMA = (-0.35, 0.4)
"""Natural logarithm of the exponent: 0.7 to 1.5, as nnU-Net."""
BIAS_COEFFICIENTS = (-0.2, 0.2)
"""Coefficients of the Legendre polynomials of the logarithm of the bias field."""

T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """What happens to one sample, in this order; ``None`` is a transform that does not happen.

    Attributes:
        motion: Rotation and scaling.
        flipped: Spatial axes that are flipped.
        noise: Standard deviation and seed of the noise.
        blur_mm: Width of the blur.
        gamma: Exponent of the change of contrast.
        bias_field: Coefficients of the bias field.
    """

    motion: Motion | None
    flipped: tuple[int, ...]
    noise: tuple[float, int] | None
    blur_mm: float | None
    gamma: float | None
    bias_field: tuple[float, ...] | None


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of patches; picklable and stateless.

    Attributes:
        config: Probabilities and ranges.
        spacing_mm: Voxel size of the patch (D, H, W).
        mirror_axes: Spatial axes that are flipped at random.
        in_plane_only: Rotate and scale in the slice only.
        bias_field: Whether to simulate bias fields (MRI).
    """

    config: AugmentConfig
    spacing_mm: Triple
    mirror_axes: tuple[int, ...]
    in_plane_only: bool
    bias_field: bool

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw what happens to one sample.

        The numbers of a transform are drawn even if it does not happen, so that a probability changes no other one.
        """
        config = self.config

        def maybe(probability: float, value: T) -> T | None:
            return value if rng.random() < probability else None

        return Drawn(
            motion=maybe(config.affine, self._draw_motion(rng)),
            flipped=tuple(axis for axis in self.mirror_axes if rng.random() < config.mirror),
            noise=maybe(config.noise, (rng.uniform(*NOISE_STD), int(rng.integers(2**63)))),
            blur_mm=maybe(config.blur, rng.uniform(*BLUR_SIGMA_VOX) * min(self.spacing_mm[1:])),
            gamma=maybe(config.gamma, float(np.exp(rng.uniform(*LOG_GAMMA)))),
            bias_field=maybe(
                config.bias_field if self.bias_field else 0.0,
                tuple(rng.uniform(*BIAS_COEFFICIENTS, np.count_nonzero(BIAS_TERMS)).tolist()),
            ),
        )

    def _draw_motion(self, rng: np.random.Generator) -> Motion:
        scale = rng.uniform(1 - self.config.scale, 1 + self.config.scale)
        limit = self.config.rotation_degrees
        depth, row, column = rng.uniform(-limit, limit, 3).tolist()
        if self.in_plane_only:
            return Motion(scales=(1.0, scale, scale), degrees=(depth, 0.0, 0.0))
        return Motion(scales=(scale, scale, scale), degrees=(depth, row, column))

    def apply(self, image: Tensor, label: Tensor, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
        """Augment a batch on its device.

        Args:
            image: (B, C, D, H, W) float32; it is not changed.
            label: (B, D, H, W) integers; it is not changed.
            drawn: What was drawn for each sample.

        Returns:
            Image and label of the same shapes and types. A sample does not depend on the others of its batch.
        """
        move = partial(affine, spacing_mm=self.spacing_mm, in_plane=self.in_plane_only)
        image, label = _changed((image, label), [sample.motion for sample in drawn], move)
        for axes in sorted({sample.flipped for sample in drawn if sample.flipped}):
            flips = [axes if sample.flipped == axes else None for sample in drawn]
            image, label = _changed((image, label), flips, _flip)
        (image,) = _changed((image,), [sample.noise for sample in drawn], noise)
        (image,) = _changed((image,), [sample.blur_mm for sample in drawn], partial(blur, spacing_mm=self.spacing_mm))
        (image,) = _changed((image,), [sample.gamma for sample in drawn], gamma)
        (image,) = _changed((image,), [sample.bias_field for sample in drawn], bias_field)
        return image, label


def build_augmentation(plan: Plan, config: AugmentConfig) -> Augmentation:
    """Build the augmentation for a plan.

    Args:
        plan: Gives spacing, mirror axes, modality, and whether slices are thick.
        config: Probabilities and ranges.
    """
    return Augmentation(
        config=config,
        spacing_mm=plan.spacing_mm,
        mirror_axes=plan.mirror_axes,
        in_plane_only=plan.rotate_in_plane_only,
        bias_field=plan.modality == "mri",
    )


def _changed(
    batch: tuple[Tensor, ...], values: Sequence[T | None], transform: Callable[..., Tensor | tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Transform the samples of a batch that have a value; ``transform`` takes their tensors and the list of values."""
    present = [value for value in values if value is not None]
    if not present:
        return batch
    if len(present) == len(values):
        parts = transform(*batch, present)
        return parts if isinstance(parts, tuple) else (parts,)
    index = torch.tensor([number for number, value in enumerate(values) if value is not None])
    index = index.to(batch[0].device, non_blocking=True)
    parts = _changed(tuple(tensor.index_select(0, index) for tensor in batch), present, transform)
    return tuple(tensor.index_copy(0, index, part) for tensor, part in zip(batch, parts, strict=True))


def _flip(image: Tensor, label: Tensor, axes: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Flip all samples along the same axes."""
    return image.flip([axis - 3 for axis in axes[0]]), label.flip([axis - 3 for axis in axes[0]])
