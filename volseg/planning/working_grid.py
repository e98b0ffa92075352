"""The grid on which a data set is worked: slice axis, cropping and spacing, with the cases' shapes on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.errors import ConfigError
from volseg.geometry.resample import check_zoom
from volseg.planning import nnunet, rules, validate
from volseg.planning.fingerprint import CaseFingerprint, Triple

Pick = Callable[[str, Callable[[], Any]], Any]
"""Called with the name of a field and its rule; returns the overridden value, or that of the rule."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WorkingGrid:
    """The working grid; triples are (D, H, W).

    Attributes:
        slice_axis: ``R``, ``A`` or ``S``: the direction of D.
        axes: Index in (R, A, S) of each axis.
        crop_nonzero: Whether cases are cropped to the box of nonzero voxels.
        spacing_mm: Target spacing.
        spacings_mm: Spacing of each case (cases, 3).
        nonzero_shapes: Voxels of the nonzero box of each case (cases, 3).
        median_shape: Median shape after cropping and resampling (3,).
    """

    slice_axis: str
    axes: tuple[int, int, int]
    crop_nonzero: bool
    spacing_mm: Triple
    spacings_mm: np.ndarray
    nonzero_shapes: np.ndarray
    median_shape: np.ndarray

    @classmethod
    def of(cls, cases: Sequence[CaseFingerprint], pick: Pick) -> WorkingGrid:
        """Derive the grid.

        Args:
            cases: Fingerprints.
            pick: Chooses between an override and a rule.

        Raises:
            ConfigError: An overridden field is not possible.
            GeometryError: The voxels of a case are of another order of magnitude than the grid's.
        """
        spacings = np.array([case.spacing_mm for case in cases])
        slice_axis = pick("slice_axis", lambda: rules.slice_axis(spacings))
        if slice_axis not in rules.ORIENTATIONS:
            raise ConfigError("plan.slice_axis has no such choice", found=slice_axis, expected="R, A, S")
        axes = rules.ANATOMICAL_AXES[slice_axis]
        order = list(axes)
        crop = pick("crop_nonzero", lambda: rules.crop_nonzero(cases))
        nonzero_shapes = np.array([case.nonzero_shape for case in cases])[:, order]
        shapes = nonzero_shapes if crop else np.array([case.shape for case in cases])[:, order]
        spacings = spacings[:, order]
        spacing = pick("spacing_mm", lambda: nnunet.target_spacing(spacings, nonzero_shapes))
        validate.check_positive("plan.spacing_mm", spacing)
        unusual = np.abs(np.log(spacings / np.median(spacings, axis=0))).max(axis=1)
        for number in np.argsort(-unusual, kind="stable"):  # of several that do not fit, the least usual is at fault
            case, shape, mm = cases[number], shapes[number].tolist(), spacings[number].tolist()
            check_zoom(shape, mm, spacing, case=f"case {case.id}", file=case.file)
        return cls(
            slice_axis=slice_axis,
            axes=axes,
            crop_nonzero=crop,
            spacing_mm=spacing,
            spacings_mm=spacings,
            nonzero_shapes=nonzero_shapes,
            median_shape=nnunet.median_shape(spacings, shapes, spacing),
        )
