"""The numbers of every case that summary and picture show, and which cases are far from the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.io.cases import listed
from volseg.planning.fingerprint import Fingerprint
from volseg.planning.outliers import odd_lengths, odd_values, odd_volumes

MOST_CLASSES = 40
"""Classes that are listed or drawn: the smallest ones, if there are more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantity:
    """One number of every case.

    Attributes:
        group: ``voxels``, ``spacing``, ``values`` or ``volume``.
        name: What is measured, in words: ``spacing along S``.
        unit: Its unit, or nothing.
        values: (cases,); nan where the case has no such number.
        far: Which cases are outliers (cases,), as :mod:`volseg.planning.outliers` defines them.
    """

    group: str
    name: str
    unit: str
    values: NDArray[np.float64]
    far: NDArray[np.bool_]

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{number_text(value)} {self.unit}".rstrip()


def number_text(value: float) -> str:
    """Return a number with 4 digits, or more before its point: ``0.1235``, ``123,457``."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def quantities(fingerprint: Fingerprint) -> list[Quantity]:
    """Return voxels and spacing along each direction, both percentiles of each channel, and the class volumes."""
    cases = fingerprint.cases
    shapes = np.array([case.shape for case in cases], dtype=np.float64)
    spacings = np.array([case.spacing_mm for case in cases], dtype=np.float64)
    lengths = [
        Quantity(group=group, name=f"{group} along {code}", unit=unit, values=values, far=odd_lengths(values))
        for group, unit, table in (("voxels", "", shapes), ("spacing", "mm", spacings))
        for code, values in zip("RAS", table.T, strict=True)
    ]
    volumes = [
        _volume(fingerprint, name)
        for name in fingerprint.label_map.class_names
        if name in fingerprint.label_map.classes
    ]
    return [*lengths, *_values(fingerprint), *volumes]


def _values(fingerprint: Fingerprint) -> Iterator[Quantity]:
    if not all(case.ranges for case in fingerprint.cases):
        return
    ranges = np.array([case.ranges for case in fingerprint.cases], dtype=np.float64)  # (cases, C, 2)
    for number, channel in enumerate(fingerprint.channels):
        far = odd_values(ranges[:, number], ct=channel.strip().lower() == "ct")
        for end, percentile in enumerate(("0.5", "99.5")):
            name = f"{percentile} percentile of {channel}"
            yield Quantity(group="values", name=name, unit="", values=ranges[:, number, end], far=far)


def _volume(fingerprint: Fingerprint, name: str) -> Quantity:
    classes = [case.classes.get(name) for case in fingerprint.cases]
    volumes = np.array([np.nan if one is None else one.volume_ml for one in classes], dtype=np.float64)
    return Quantity(group="volume", name=f"volume of {name}", unit="mL", values=volumes, far=odd_volumes(volumes))


def smallest(volumes: Sequence[Quantity]) -> tuple[list[Quantity], int]:
    """Return the classes of the smallest median volume, at most 40, in their order, and how many others there are."""
    medians = [float(np.nanmedian(one.values)) if np.isfinite(one.values).any() else 0.0 for one in volumes]
    shown = sorted(sorted(range(len(volumes)), key=medians.__getitem__)[:MOST_CLASSES])
    return [volumes[index] for index in shown], len(volumes) - len(shown)


def far_cases(fingerprint: Fingerprint) -> Iterator[str]:
    """Yield a sentence for each quantity in which some cases are far from the others, which are named."""
    rows = quantities(fingerprint)
    values = [row for row in rows if row.group == "values"]
    parts = {row.name: [row] for row in rows if row.group != "values"}
    for number, channel in enumerate(fingerprint.channels if values else ()):
        parts[f"values of {channel}"] = values[2 * number : 2 * number + 2]  # both percentiles
    for name, pair in parts.items():
        far = np.flatnonzero(pair[0].far).tolist()
        if far:
            texts = [" to ".join(part.text(part.values[index]) for part in pair) for index in far]
            cases = listed([f"{fingerprint.cases[index].id} ({text})" for index, text in zip(far, texts, strict=True)])
            median = " to ".join(part.text(float(np.nanmedian(part.values))) for part in pair)
            yield f"{name}, median {median}: {cases}"
