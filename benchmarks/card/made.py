"""A made data set with the sizes and classes of the Decathlon's hippocampus."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

from prediction.networks import smooth_volume

SHAPE = (36, 50, 35)
AFFINE = np.array([[1.0, 0, 0, -18], [0, 1, 0, -25], [0, 0, 1, -17], [0, 0, 0, 1]])
CLASSES = ("Anterior", "Posterior")


def write_dataset(folder: Path, cases: int) -> Path:
    """Write images and labels in the layout of the Decathlon: smooth noise, and two halves of an ellipsoid in it."""
    whole = smooth_volume((cases * SHAPE[0], *SHAPE[1:]))[0]
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    organ = sum((3 * axis) ** 2 for axis in axes) < 1
    label = np.where(organ, np.where(axes[1] < 0, 1, 2), 0).astype(np.uint8)
    names = [f"made_{number:03d}" for number in range(cases)]
    for number, name in enumerate(names):
        image = whole[number * SHAPE[0] : (number + 1) * SHAPE[0]] + 2 * np.roll(organ, number % 7, axis=0)
        for part, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", np.roll(label, number % 7, axis=0))):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / part / f"{name}.nii.gz")
    labels = {"0": "background"} | {str(number): name for number, name in enumerate(CLASSES, start=1)}
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    description = {"name": "Made", "modality": {"0": "MRI"}, "labels": labels, "training": training, "test": []}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder
