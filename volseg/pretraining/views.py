"""Views of a slice: random crops of two sizes with flips and changes of intensity, for CT and MRI.

Source: ``DataAugmentationDINO`` of github.com/facebookresearch/dinov2, with its ranges of crops and blur. Colours have
no meaning here: contrast, brightness, gamma and noise stand for their jitter, and nothing is solarised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from volseg.data.datasets import case_index
from volseg.errors import DataError
from volseg.pretraining.masking import block_mask, mask_ratio
from volseg.pretraining.slices import REGION, SliceSource, ViewShape

GLOBAL_AREA, LOCAL_AREA = (0.32, 1.0), (0.05, 0.32)
"""Share of the region's area that a view shows."""
ASPECT = (3 / 4, 4 / 3)
GLOBAL_BLUR, LOCAL_BLUR = (1.0, 0.1), 0.5
"""Probability of blur: of the first and of the second global view, and of local ones."""
EMPTY = 0.1
"""Standard deviation, in normalised values, below which a region shows nothing."""
ATTEMPTS = 8
Rng = np.random.Generator


class SliceViews(Dataset[dict[str, Tensor | str]]):
    """Views of random slices. Sample ``i`` is the same for any number of workers and in a resumed run.

    Each pass over the scans uses every scan once, in a new random order; channel, axis and slice are drawn.

    Args:
        sources: The scans.
        shape: Size of the views.
        seed: Seed of the run.
        batch_size: Samples of a batch, over which the shares of masked patches are spread.
        samples: Length.
    """

    def __init__(
        self, sources: Sequence[SliceSource], shape: ViewShape, *, seed: int, batch_size: int, samples: int
    ) -> None:
        if not sources:
            raise DataError("there is no scan to pretrain on")
        self.sources = tuple(sources)
        self.shape = shape
        self.seed = seed
        self.batch_size = batch_size
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """Return sample ``index``.

        Returns:
            ``global`` (2, 1, P, P) and ``local`` (V, 1, p, p) float32, ``masked`` (2, T * T): which patches of the
            global views the student does not see, those of one of the two; ``case`` the name of the scan.
        """
        if not 0 <= index < self.samples:
            raise IndexError(index)
        source = self.sources[case_index(self.seed, index, len(self.sources))]
        rng = np.random.default_rng([self.seed, index])
        region, spacing_mm = random_region(source, self.shape, rng)
        sides = self.shape.patch * self.shape.global_tokens, self.shape.patch * self.shape.local_tokens
        large = [changed(resized_crop(region, spacing_mm, GLOBAL_AREA, sides[0], rng), p, rng) for p in GLOBAL_BLUR]
        small = [
            changed(resized_crop(region, spacing_mm, LOCAL_AREA, sides[1], rng), LOCAL_BLUR, rng)
            for _ in range(self.shape.local_views)
        ]
        empty = region.new_zeros(0, 1, sides[1], sides[1])
        return {
            "global": torch.stack(large),
            "local": torch.stack(small) if small else empty,
            "masked": self._masks(index, rng),
            "case": source.scan.id,
        }

    def _masks(self, index: int, rng: Rng) -> Tensor:
        """Mask one of the two global views: ``(2, T * T)``."""
        tokens = self.shape.global_tokens
        count = max(1, int(mask_ratio(index % self.batch_size, self.batch_size, rng) * tokens**2))
        masks = np.zeros((2, tokens**2), dtype=bool)
        masks[int(rng.integers(2))] = block_mask(tokens, tokens, count, rng).reshape(-1)
        return torch.from_numpy(masks)


def random_region(source: SliceSource, shape: ViewShape, rng: Rng) -> tuple[Tensor, tuple[float, float]]:
    """Draw a region of a slice that shows something, if there is one among a few.

    Returns:
        ``(1, rows, columns)`` normalised, and the voxel size in mm.
    """
    for _ in range(ATTEMPTS):
        channel = int(rng.integers(len(source.scaling)))
        axis = source.axes[int(rng.integers(len(source.axes)))]
        (rows, columns), spacing_mm = source.plane(axis)
        size = source.size_of(axis, REGION * shape.side)
        start = int(rng.integers(rows - size[0] + 1)), int(rng.integers(columns - size[1] + 1))
        region = source.piece(channel, axis, int(rng.integers(source.scan.shape[axis])), start, size)
        if region.std(correction=0) >= EMPTY:
            break
    return region, spacing_mm


def resized_crop(
    region: Tensor, spacing_mm: Sequence[float], areas: tuple[float, float], pixels: int, rng: Rng
) -> Tensor:
    """Cut a rectangle of random area, aspect and place, and resize it to a square, bilinearly with antialiasing.

    Args:
        region: ``(1, rows, columns)``.
        spacing_mm: Height and width of its voxels.
        areas: Smallest and largest share of its area.
        pixels: Side of the result.
        rng: Random numbers.

    Returns:
        ``(1, pixels, pixels)``, flipped or not along each axis.
    """
    rows, columns = region.shape[1:]
    height_mm, width_mm = rows * spacing_mm[0], columns * spacing_mm[1]
    area = rng.uniform(areas[0], areas[1]) * height_mm * width_mm
    aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    high = min(rows, max(1, round(math.sqrt(area * aspect) / spacing_mm[0])))
    wide = min(columns, max(1, round(math.sqrt(area / aspect) / spacing_mm[1])))
    top, left = int(rng.integers(rows - high + 1)), int(rng.integers(columns - wide + 1))
    crop = resized(region[:, top : top + high, left : left + wide], pixels)
    flips = [axis for axis in (1, 2) if rng.random() < 0.5]
    return crop.flip(flips) if flips else crop


def resized(piece: Tensor, pixels: int) -> Tensor:
    """Resize ``(1, rows, columns)`` to ``(1, pixels, pixels)``."""
    size = (pixels, pixels)
    return F.interpolate(piece[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def changed(view: Tensor, blur: float, rng: Rng) -> Tensor:
    """Change the intensities of a view ``(1, P, P)`` at random: contrast, brightness, gamma, blur and noise.

    Args:
        view: Normalised values.
        blur: Probability of blur.
        rng: Random numbers.
    """
    if rng.random() < 0.8:
        mean = view.mean()
        view = (view - mean) * rng.uniform(0.6, 1.4) + mean + rng.uniform(-0.4, 0.4)
    if rng.random() < 0.5:
        low, span = view.min(), (view.max() - view.min()).clamp(min=1e-6)
        view = ((view - low) / span) ** math.exp(rng.uniform(-0.4, 0.4)) * span + low
    if rng.random() < blur:
        view = blurred(view, rng.uniform(0.1, 2.0))
    if rng.random() < 0.2:
        noise = rng.standard_normal(view.shape, dtype=np.float32)
        view = view + torch.from_numpy(noise) * rng.uniform(0, 0.2)
    return view


def blurred(view: Tensor, sigma: float) -> Tensor:
    """Convolve ``(1, P, P)`` with a Gaussian of ``sigma`` pixels; the border is repeated."""
    radius = max(1, math.ceil(3 * sigma))
    at = torch.arange(-radius, radius + 1, dtype=view.dtype)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(view[None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[0]
