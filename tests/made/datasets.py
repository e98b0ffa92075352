"""Made-up fingerprints and scans for the tests of planning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np

from volseg.io.labels import LabelMap
from volseg.planning.fingerprint import CaseFingerprint, ClassShape, Fingerprint, IntensityStatistics

STATISTICS = IntensityStatistics(mean=60.0, std=20.0, percentile_00_5=0.0, percentile_99_5=120.0)


def shape(extent_mm: Sequence[float] = (40, 40, 40), centroid_mm: Sequence[float] = (50, 50, 50)) -> ClassShape:
    return ClassShape(extent_mm=tuple(extent_mm), centroid_mm=tuple(centroid_mm))


def case(
    voxels: Sequence[int] = (128, 128, 128),
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    classes: Mapping[str, ClassShape] | None = None,
    nonzero: Sequence[int] | None = None,
    midline_mm: float | None = None,
) -> CaseFingerprint:
    """One case; triples in (R, A, S) order."""
    return CaseFingerprint(
        id="case",
        shape=tuple(voxels),
        spacing_mm=tuple(spacing_mm),
        nonzero_shape=tuple(nonzero or voxels),
        classes=dict(classes) if classes is not None else {"organ": shape()},
        midline_mm=midline_mm,
    )


def measured(*cases: CaseFingerprint, channels: Sequence[str] = ("CT",)) -> Fingerprint:
    names = sorted({name for one in cases for name in one.classes})
    return Fingerprint(
        dataset="Made",
        modality="ct" if all(name == "CT" for name in channels) else "mri",
        channels=tuple(channels),
        label_map=LabelMap({name: (value,) for value, name in enumerate(names, start=1)}),
        intensity=(STATISTICS,) * len(channels),
        cases=cases,
    )


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def write_dataset(
    root: Path,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    affine: np.ndarray | None = None,
    modality: str = "CT",
    names: Sequence[str] = ("background", "organ", "lesion"),
) -> Path:
    """A Decathlon data set with cases c0, c1, ..."""
    training = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_nifti(root / f"imagesTr/c{number}.nii.gz", image, affine)
        save_nifti(root / f"labelsTr/c{number}.nii.gz", label, affine)
        training.append({"image": f"./imagesTr/c{number}.nii.gz", "label": f"./labelsTr/c{number}.nii.gz"})
    description = {
        "name": "Made up",
        "modality": {"0": modality},
        "labels": {str(value): name for value, name in enumerate(names)},
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return root


def write_small_dataset(root: Path, cases: int = 3) -> Path:
    """A data set that is learned in a few steps: one organ in noise, 16 x 16 x 8 voxels."""
    rng, label = np.random.default_rng(0), np.zeros((16, 16, 8), np.uint8)
    label[4:9, 5:11, 2:6] = 1
    images = [rng.normal(size=label.shape).astype(np.float32) + 3 * label for _ in range(cases)]
    return write_dataset(root, images, [label] * cases, names=("background", "organ"))
