"""Principal components of patch tokens as colours.

Source: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", figure 1; here without a
threshold on the first component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 3
PERCENTILES = (1, 99)
"""Percentiles of a component, over all tokens it is fitted on, that become 0 and 1 of its colour."""
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pca:
    """The first three principal components of tokens.

    Attributes:
        mean: ``(E,)``.
        components: ``(3, E)``, of length 1; the largest entry of each, by size, is positive.
        explained: ``(3,)``, share of the variance of the tokens.
        low: ``(3,)``, value of each component that becomes 0 of its colour.
        high: ``(3,)``, the same of 1.
    """

    mean: Array
    components: Array
    explained: Array
    low: Array
    high: Array

    def colours(self, patches: NDArray[Any]) -> Array:
        """Return the colours of the tokens ``(E, h, w)`` of a slice: ``(h, w, 3)`` from 0 to 1."""
        values = np.moveaxis(patches, 0, -1).astype(np.float64)
        span = np.where(self.high > self.low, self.high - self.low, 1)
        return np.asarray(np.clip((_projected(values, self.mean, self.components) - self.low) / span, 0, 1))


def fit_pca(slices: Sequence[NDArray[Any]]) -> Pca:
    """Fit the components to the tokens of some slices, each ``(E, h, w)``, E >= 3."""
    rows = [np.reshape(patches, (len(patches), -1)).T for patches in slices]  # (h * w, E)
    count = sum(map(len, rows))
    mean = np.sum([each.sum(axis=0, dtype=np.float64) for each in rows], axis=0) / count
    covariance = np.sum([(centred := each.astype(np.float64) - mean).T @ centred for each in rows], axis=0) / count
    variances, vectors = np.linalg.eigh(covariance)
    components = vectors[:, ::-1][:, :COMPONENTS].T
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.where(largest < 0, -1, 1)
    values = np.concatenate([_projected(each.astype(np.float64), mean, components) for each in rows])
    low, high = np.percentile(values, PERCENTILES, axis=0)
    total = variances.clip(min=0).sum()
    explained = variances[::-1][:COMPONENTS].clip(min=0) / (total or 1)
    return Pca(mean, components, explained, low, high)


def _projected(values: Array, mean: Array, components: Array) -> Array:
    """``(..., E)`` -> ``(..., 3)``."""
    return np.asarray((values - mean) @ components.T)
