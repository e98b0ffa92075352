"""The random transforms of training patches, beside TorchIO's and numpy's, on the same patches and parameters.

`TorchIO` holds what volseg used before; it needs ``torchio<2``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import leggrid3d
from torch import Tensor

from volseg.config.schema import AugmentConfig
from volseg.data.augment import Augmentation
from volseg.data.transforms import BIAS_TERMS

TRANSFORMS = ("affine", "noise", "blur", "gamma", "bias_field")
PATCHES: dict[str, tuple[tuple[int, int, int], tuple[float, float, float], bool]] = {
    "hippocampus": ((42, 56, 40), (1.0, 1.0, 1.0), False),
    "thick slices": ((26, 160, 160), (7.7, 1.6, 1.6), True),
    "cube": ((96, 96, 96), (1.0, 1.0, 1.0), False),
}
"""Name -> voxels, spacing in mm, and whether patches turn in plane only."""


@dataclass(frozen=True)
class TorchIO:
    """TorchIO's transforms of one patch, and numpy's bias field."""

    spacing_mm: tuple[float, float, float]

    def affine(self, image: Tensor, label: Tensor, motion: Any) -> tuple[Tensor, Tensor]:
        """Rotate and scale."""
        import torchio

        matrix = np.diag([*self.spacing_mm, 1.0])
        subject = torchio.Subject(
            image=torchio.ScalarImage(tensor=image, affine=matrix),
            label=torchio.LabelMap(tensor=label[None].to(torch.int16), affine=matrix),
        )
        moved = torchio.Affine(motion.scales, motion.degrees, translation=(0, 0, 0), default_pad_value=0)(subject)
        return moved["image"].data, moved["label"].data[0].to(label.dtype)

    def noise(self, image: Tensor, drawn: tuple[float, int]) -> Tensor:
        """Add noise."""
        import torchio

        return torchio.Noise(mean=0.0, std=drawn[0], seed=drawn[1])(image)

    def blur(self, image: Tensor, sigma_mm: float) -> Tensor:
        """Blur."""
        import torchio

        scan = torchio.ScalarImage(tensor=image, affine=np.diag([*self.spacing_mm, 1.0]))
        return torchio.Blur(std=(sigma_mm,) * 3)(scan).data

    def gamma(self, image: Tensor, exponent: float) -> Tensor:
        """Change the contrast."""
        import torchio

        space = (1, 2, 3)
        low, high = image.amin(space, keepdim=True), image.amax(space, keepdim=True)
        curved = torchio.Gamma(gamma=exponent)(((image - low) / (high - low).clamp_min(1e-6)).clamp(0, 1))
        ratio = image.std(space, keepdim=True) / curved.std(space, keepdim=True).clamp_min(1e-6)
        return (curved - curved.mean(space, keepdim=True)) * ratio + image.mean(space, keepdim=True)

    def bias_field(self, image: Tensor, coefficients: tuple[float, ...]) -> Tensor:
        """Multiply by a smooth field."""
        low = image.amin((1, 2, 3), keepdim=True)
        products = np.zeros(BIAS_TERMS.shape)
        products[BIAS_TERMS] = coefficients
        log_field = leggrid3d(*(np.linspace(-1, 1, size) for size in image.shape[1:]), products)
        return (image - low) * torch.as_tensor(np.exp(log_field), dtype=image.dtype) + low


def measure(patch: str, repeats: int) -> dict[str, Any]:
    """Time each transform on noise, volseg's and TorchIO's taking turns on the same parameters.

    Returns:
        Transform -> CPU seconds of each repetition (``volseg``, ``torchio``), and the largest ``difference`` of the
        images (not of noise, whose numbers are others), as well as the shares of labels that differ (``labels``) and of
        voxels of which only one is filled with 0 (``edges``); these have no difference.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    shape, spacing_mm, in_plane = PATCHES[patch]
    image, label = torch.randn(1, *shape), torch.randint(-1, 3, shape, dtype=torch.int16)
    peer = TorchIO(spacing_mm)
    results = {}
    for name in TRANSFORMS:
        settings = AugmentConfig(**{key: float(key == name) for key in (*TRANSFORMS, "mirror")})
        made = Augmentation(settings, spacing_mm, (), in_plane, True)
        result: dict[str, Any] = {"volseg": [], "torchio": [], "difference": 0.0, "labels": 0.0, "edges": 0.0}
        for repeat in range(repeats + 1):
            drawn = made.draw(np.random.default_rng([len(name), repeat]))
            value = next(value for value in vars(drawn).values() if value not in (None, ()))
            inputs = (image, label) if name == "affine" else (image,)
            calls = {
                "torchio": partial(getattr(peer, name), *inputs, value),
                "volseg": partial(made.apply, image[None], label[None], [drawn]),
            }
            order = list(calls) if repeat % 2 else list(calls)[::-1]
            timed = {key: cpu_seconds(calls[key]) for key in order}
            other, (ours, our_label) = timed["torchio"][1], timed["volseg"][1]
            if name == "affine":
                other, other_label = other
                result["labels"] = max(result["labels"], float((other_label != our_label[0]).float().mean()))
            outside = (other == 0) != (ours[0] == 0)
            result["edges"] = max(result["edges"], float(outside.float().mean()))
            if name != "noise":
                difference = (other - ours[0])[~outside].abs().max()
                result["difference"] = max(result["difference"], float(difference))
            if repeat:  # the first one warms up
                for key in calls:
                    result[key].append(timed[key][0])
        results[name] = result
    return results


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of a call, which other load on the machine lengthens less, and the result."""
    started = time.process_time()
    result = function()
    return time.process_time() - started, result
