"""Made-up plans and cases for the tests of data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from volseg.io.datasets import Case
from volseg.planning.channel import ChannelIntensity
from volseg.planning.plan import Plan
from volseg.preprocessing.preprocess import class_locations

CT = ChannelIntensity(rule="ct", clip_low=-100.0, clip_high=200.0, mean=50.0, std=25.0)


def made_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "dataset": "Made",
        "modality": "ct",
        "channels": ("CT",),
        "labels": {"background": 0, "organ": 1, "lesion": 5},
        "ignore_label": None,
        "slice_axis": "S",
        "spacing_mm": (2.0, 1.0, 1.0),
        "intensity": (CT,),
        "crop_nonzero": False,
        "patch_size": (4, 8, 8),
        "token_stride": 4,
        "decoder_strides": ((1, 1, 1), (1, 2, 2), (1, 4, 4)),
        "mirror_axes": (2,),
        "nearest_depth": False,
        "rotate_in_plane_only": False,
    }
    return Plan(**values | changes)


@dataclass(frozen=True, eq=False)
class MadeCase:
    """A preprocessed case in memory."""

    id: str
    image: NDArray[np.float32]
    label: NDArray[Any]

    @property
    def locations(self) -> NDArray[np.int32]:
        return class_locations(self.label)


def numbered_case(shape: tuple[int, int, int] = (6, 12, 10), name: str = "made") -> MadeCase:
    """Every voxel holds its own number, so that a patch tells where it was cut; one voxel of class 2."""
    image = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape)
    label = np.zeros(shape, dtype=np.int8)
    label[shape[0] // 2 :, : shape[1] // 2] = 1
    label[-1, -1, -1] = 2
    return MadeCase(name, image, label)


def write_case(
    folder: Path, name: str, image: NDArray[Any], label: NDArray[Any], affine: NDArray[np.float64] | None = None
) -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}_image.nii.gz", folder / f"{name}_label.nii.gz"
    for path, array in zip(paths, (image, label), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return Case(name, (paths[0],), paths[1])
