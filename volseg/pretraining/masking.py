"""Masks of patches: rectangular blocks, completed by single patches.

Source: Bao et al. 2022, "BEiT"; github.com/facebookresearch/dinov2, ``dinov2/data/masking.py``. There, a mask may have
fewer patches than drawn; here it has exactly as many, as in DINOv3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

RATIOS = (0.1, 0.5)
"""Smallest and largest share of masked patches."""
SMALLEST_BLOCK = 4
ASPECTS = (0.3, 1 / 0.3)
"""Height over width of a block."""
ATTEMPTS = 10


def mask_ratio(position: int, batch_size: int, rng: np.random.Generator) -> float:
    """Draw the share of masked patches of a sample: the range is divided evenly among the samples of a batch.

    Args:
        position: Number of the sample in the batch.
        batch_size: Samples of a batch.
        rng: Random numbers of the sample.
    """
    low, high = RATIOS
    return low + (high - low) * (position + rng.random()) / batch_size


def block_mask(height: int, width: int, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mask exactly ``count`` of ``height`` x ``width`` patches, in blocks as far as they fit: ``(height, width)``."""
    mask = np.zeros((height, width), dtype=bool)
    while (left := count - int(mask.sum())) >= SMALLEST_BLOCK and _add_block(mask, left, rng):
        pass
    free = np.flatnonzero(~mask)
    mask.flat[rng.choice(free, count - int(mask.sum()), replace=False)] = True
    return mask


def _add_block(mask: NDArray[np.bool_], most: int, rng: np.random.Generator) -> bool:
    """Add a block with at most ``most`` new patches; return whether one was found."""
    height, width = mask.shape
    for _ in range(ATTEMPTS):
        area = rng.uniform(SMALLEST_BLOCK, most)
        aspect = math.exp(rng.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < rows < height and 0 < columns < width):
            continue
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        block = mask[top : top + rows, left : left + columns]
        if 0 < block.size - int(block.sum()) <= most:
            block[...] = True
            return True
    return False
