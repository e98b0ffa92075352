"""Scores of one case: all metrics of every class, and the checks of their inputs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError, GeometryError
from volseg.geometry.volume import LARGEST_LABEL
from volseg.metrics.overlap import count_voxels
from volseg.metrics.pair import HD_MODES, ClassPair, HdMode
from volseg.metrics.policy import image_diagonal_mm
from volseg.metrics.surfaces import NO_SURFACE, find_borders
from volseg.metrics.surfels import surfel_areas_mm2
from volseg.metrics.table import ClassScores, class_scores

Label = TypeVar("Label", bound=Hashable)
Labels = NDArray[np.integer]
Groups = dict[Label, tuple[int, ...]]


def case_scores(
    pred: NDArray[np.generic],
    ref: NDArray[np.generic],
    spacing_mm: Sequence[float],
    labels: Mapping[Label, int | Sequence[int]] | Iterable[Label],
    hd_mode: HdMode = "max",
    nsd_tolerance_mm: float | Mapping[Label, float] = 1.0,
    *,
    ignore_label: int | None = None,
) -> dict[Label, ClassScores]:
    """Compute Dice, IoU, HD95, HD, ASSD, NSD and volume error of every class.

    A volume of one slice is scored in the plane of the slice: faces towards the missing neighbour slices are no border.

    Args:
        pred: Predicted labels, integer or bool, shape (D, H, W).
        ref: Reference labels, same shape and grid.
        spacing_mm: Voxel size along the three array axes, in their order.
        labels: The classes: label values, or name -> value, or name -> several values scored as one region. The
            background (0) is skipped.
        hd_mode: Definition of HD95. ``max``: larger of the two directed percentiles between voxel borders (MONAI,
            MetricsReloaded). ``pooled``: percentile of both directions together (MedPy). ``surfel``: weighted by
            surface area (DeepMind); HD is then computed from surfels, too.
        nsd_tolerance_mm: Tolerance of NSD, finite; for all classes, or a mapping with every class.
        ignore_label: Reference voxels of this value are excluded from all metrics; their border is no surface.

    Returns:
        Class -> scores, with the keys and order of ``labels``. NaN where a score is not defined (see
        :mod:`volseg.metrics.policy`).

    Raises:
        GeometryError: The shapes differ or the spacing is not three positive numbers.
        DataError: A label value, tolerance or mode is invalid.

    Source: HD95 in mode ``max`` as in MONAI and MetricsReloaded (Maier-Hein, Reinke et al. 2024); NSD over surface
    areas as in DeepMind's surface-distance (Nikolov et al. 2018).
    """
    spacing = _checked_spacing(pred, ref, spacing_mm)
    if hd_mode not in HD_MODES:
        raise DataError("hd_mode is invalid", found=hd_mode, expected=", ".join(HD_MODES))
    groups = _groups(labels, ignore_label)
    tolerances = _tolerances(nsd_tolerance_mm, groups)
    small_pred, small_ref = _with_ignore(_small(pred), _small(ref), ignore_label)
    areas, diagonal = surfel_areas_mm2(spacing), image_diagonal_mm(ref.shape, spacing)

    scores: dict[Label, ClassScores] = {}
    for layer in _layers(groups):
        layer_pred, layer_ref, values, ignore = _as_layer(small_pred, small_ref, layer, ignore_label)
        counts = count_voxels(layer_pred, layer_ref)
        pred_surfaces, ref_surfaces = find_borders(layer_pred, ignore), find_borders(layer_ref, ignore)
        for label, value in values.items():
            n_pred, n_ref, both = (int(count[value]) if value < len(count) else 0 for count in counts)
            surfaces = pred_surfaces.pop(value, NO_SURFACE), ref_surfaces.pop(value, NO_SURFACE)
            pair = ClassPair(n_pred, n_ref, both, *surfaces, spacing, areas, diagonal, hd_mode, tolerances[label])
            scores[label] = class_scores(pair)
    return {label: scores[label] for label in groups}


def _checked_spacing(
    pred: NDArray[np.generic], ref: NDArray[np.generic], spacing_mm: Sequence[float]
) -> tuple[float, float, float]:
    if pred.shape != ref.shape:
        raise GeometryError("prediction and reference differ in shape", found=pred.shape, expected=ref.shape)
    if ref.ndim != 3:
        hint = "give a 2D mask as (1, H, W) and the slice thickness as its first spacing" if ref.ndim == 2 else None
        raise GeometryError("masks need three axes", found=ref.shape, expected="(D, H, W)", hint=hint)
    if 0 in ref.shape:
        raise GeometryError("the masks have no voxels", found=ref.shape, expected="(D, H, W), each >= 1")
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing):
        raise GeometryError("spacing_mm is invalid", found=spacing, expected="three positive numbers")
    return spacing


def _groups(labels: Mapping[Label, int | Sequence[int]] | Iterable[Label], ignore_label: int | None) -> Groups[Label]:
    """Return label -> its values, without the background."""
    pairs: Iterable[tuple[Label, object]] = (
        labels.items() if isinstance(labels, Mapping) else ((label, label) for label in labels)
    )
    groups: Groups[Label] = {}
    for label, value in pairs:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if not values or not all(isinstance(v, (int, np.integer)) and 0 <= v <= LARGEST_LABEL for v in values):
            raise DataError(
                f"class {label!r} has an invalid label value",
                found=value,
                expected=f"whole numbers, 0 to {LARGEST_LABEL}",
            )
        if ignore_label is not None and ignore_label in values:
            raise DataError(f"class {label!r} uses the value of the ignore label", found=ignore_label)
        if values != (0,):
            groups[label] = tuple(sorted({int(v) for v in values}))
    return groups


def _tolerances(tolerance_mm: float | Mapping[Label, float], groups: Groups[Label]) -> dict[Label, float]:
    """Return the tolerance of every class."""
    if not isinstance(tolerance_mm, Mapping):
        return dict.fromkeys(groups, check_tolerance(tolerance_mm, "all classes"))
    missing = [repr(label) for label in groups if label not in tolerance_mm]
    if missing:
        raise DataError(
            "classes without an NSD tolerance",
            found=", ".join(missing),
            expected="a tolerance in mm for every class, or one number for all",
        )
    return {label: check_tolerance(tolerance_mm[label], f"class {label!r}") for label in groups}


def check_tolerance(tolerance_mm: object, what: str) -> float:
    """Check a tolerance of NSD and return it as a float.

    Args:
        tolerance_mm: The tolerance, mm.
        what: The class or classes it applies to, for the message.

    Raises:
        DataError: The tolerance is not a finite number >= 0.
    """
    valid = isinstance(tolerance_mm, (int, float, np.integer, np.floating)) and not isinstance(tolerance_mm, bool)
    if not valid or not 0 <= float(tolerance_mm) < np.inf:  # type: ignore[arg-type]
        raise DataError(
            f"NSD tolerance of {what} is out of range",
            found=tolerance_mm,
            expected="finite and >= 0 mm",
            hint="in Python, give those of single classes as class_tolerance_mm"
            if isinstance(tolerance_mm, Mapping)
            else None,
        )
    return float(tolerance_mm)  # type: ignore[arg-type]


def _small(labels: NDArray[np.generic]) -> Labels:
    """Return the labels as uint8 or uint16; values outside the valid range become background."""
    if labels.dtype == bool:
        return labels.view(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError("a mask must hold whole numbers", found=labels.dtype, expected="an integer or bool array")
    if labels.dtype in (np.uint8, np.uint16):
        return labels  # type: ignore[return-value]
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high > LARGEST_LABEL:
        labels = np.where((labels < 0) | (labels > LARGEST_LABEL), 0, labels)  # type: ignore[operator]
    return labels.astype(np.uint8 if high <= 255 else np.uint16)


def _with_ignore(pred: Labels, ref: Labels, ignore_label: int | None) -> tuple[Labels, Labels]:
    """Mark ignored reference voxels in the prediction, too; a predicted ignore value becomes background."""
    if ignore_label is None:
        return pred, ref
    dtype = np.promote_types(pred.dtype, ref.dtype)
    pred = np.where(pred == ignore_label, 0, pred).astype(dtype)
    pred[ref == ignore_label] = ignore_label
    return pred, ref


def _layers(groups: Groups[Label]) -> list[Groups[Label]]:
    """Split the classes into layers in which no two share a value, as nested regions would."""
    layers: list[Groups[Label]] = []
    for label, values in groups.items():
        free = (layer for layer in layers if not any(set(values) & set(others) for others in layer.values()))
        layer = next(free, None)
        if layer is None:
            layers.append({label: values})
        else:
            layer[label] = values
    return layers


def _as_layer(
    pred: Labels, ref: Labels, layer: Groups[Label], ignore_label: int | None
) -> tuple[Labels, Labels, dict[Label, int], int | None]:
    """Return both label maps with one value per class of the layer; unchanged if no class has several values."""
    if all(len(values) == 1 for values in layer.values()):
        return pred, ref, {label: values[0] for label, values in layer.items()}, ignore_label
    table: Labels = np.zeros(LARGEST_LABEL + 1, np.uint8 if len(layer) < 255 else np.uint16)
    ids = {label: number for number, label in enumerate(layer, start=1)}
    for label, values in layer.items():
        table[list(values)] = ids[label]
    ignore = None
    if ignore_label is not None:
        ignore = table[ignore_label] = len(ids) + 1
    return _mapped(pred, table), _mapped(ref, table), ids, ignore


def _mapped(labels: Labels, table: Labels) -> Labels:
    """Return ``table[labels]``, slice by slice: an index array of the whole volume would need 8 bytes per voxel."""
    mapped = np.empty_like(labels, dtype=table.dtype)
    fortran = labels.flags.f_contiguous
    for source, target in zip(labels.T if fortran else labels, mapped.T if fortran else mapped, strict=True):
        target[...] = table[source]
    return mapped
