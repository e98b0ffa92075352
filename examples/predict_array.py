"""Segment a scan that is a NumPy array, and save the mask.

python examples/predict_array.py MODEL SCAN MASK
"""

from __future__ import annotations

import sys

import nibabel
import numpy as np

import volseg


def main(model_file: str, scan_file: str, mask_file: str) -> int:
    """Read a scan with nibabel, segment the array, print the volume of each class and write the mask."""
    scan = nibabel.load(scan_file)
    voxels = np.asanyarray(scan.dataobj)  # (D, H, W), or (C, D, H, W) with several channels

    predictor = volseg.load(model_file)
    mask = predictor.predict(voxels, scan.affine)  # on the scan's own grid

    voxel_ml = abs(np.linalg.det(mask.grid.affine[:3, :3])) / 1000
    for name, value in predictor.plan.labels.items():
        if value != 0:
            print(f"{name}: {np.count_nonzero(mask.labels == value) * voxel_ml:.1f} ml")
    mask.save(mask_file)  # .nii.gz, .seg.nrrd, .mha or .mgz
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
