"""The kinds of files in which prediction writes masks, and the endings of their names."""

from __future__ import annotations

MASK_FORMATS = {
    "nii.gz": ".nii.gz",
    "nrrd": ".nrrd",
    "seg.nrrd": ".seg.nrrd",
    "mha": ".mha",
    "mgz": ".mgz",
    "dicom-seg": ".seg.dcm",
    "rtstruct": ".rtstruct.dcm",
}
"""The choices of ``--format`` and the ending of a mask's name in each."""
DICOM_ENDINGS = (MASK_FORMATS["dicom-seg"], MASK_FORMATS["rtstruct"])
"""Endings of masks that refer to the DICOM series which was segmented, and hold all of its classes."""
DEFAULT_FORMATS = {
    ".nii.gz": "nii.gz",
    ".nii": "nii.gz",
    ".img": "nii.gz",
    ".seg.nrrd": "seg.nrrd",
    ".nrrd": "seg.nrrd",
    ".nhdr": "seg.nrrd",
    ".mha": "mha",
    ".mhd": "mha",
    ".mgz": "mgz",
    ".mgh": "mgz",
}
"""Ending of a scan's name -> format of its mask, unless another is requested; DICOM and others: ``nii.gz``."""
MASK_ENDINGS = (*MASK_FORMATS.values(), ".nii", ".mgh")
"""Endings of file names under which a mask can be written."""
PROBABILITIES, UNCERTAINTY = "_probabilities.nii", "_uncertainty.nii.gz"
"""Endings of the maps beside a mask, which are NIfTI in any case: the other formats of masks are for labels.
Probabilities are not compressed: gzip took 80 s per GB and saved a tenth."""
UNWRITTEN = (
    *(".dcm", ".img", ".hdr", ".nhdr", ".mhd", ".nii.zip", ".nii.bz2", ".npy", ".npz", ".h5", ".mat"),
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".mnc", ".vtk", ".vti", ".stl", ".obj"),
)
"""Endings of files in which no mask is written, and which are no names for a folder either."""


def ending_of(name: str, endings: tuple[str, ...] = MASK_ENDINGS) -> str | None:
    """Return the longest of some endings that a file name has, in any capitalisation."""
    fitting = [ending for ending in endings if name.lower().endswith(ending)]
    return max(fitting, key=len, default=None)


def default_ending(scan_name: str) -> str:
    """Return the ending of the mask of a scan in the scan's own kind of file."""
    ending = ending_of(scan_name, tuple(DEFAULT_FORMATS))
    return MASK_FORMATS[DEFAULT_FORMATS[ending] if ending else "nii.gz"]
