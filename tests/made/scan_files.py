"""One scan written in every way NIfTI has for the same values at the same places."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.made.trained import INTER, LAS, SLOPE

Values = NDArray[Any]
Writer = Callable[[Path, Values], None]
NO_FORM = {"sform": 0, "qform": 0}


def write_scan(
    path: Path,
    stored: Values,
    affine: NDArray[np.float64] = LAS,
    *,
    sform: int = 2,
    qform: int = 0,
    other: NDArray[np.float64] | None = None,
    scaling: tuple[float, float] = (np.nan, np.nan),
    kind: type = nibabel.Nifti1Header,
    endianness: str = "<",
    unit: str = "mm",
    pixdim: dict[int, float] | None = None,
) -> Path:
    """Writes header and voxels byte by byte, so that nothing is put right on the way.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        stored: Voxels ``(D, H, W)`` in the type to store.
        affine: Goes into the forms whose code is not 0, and its voxel sizes into ``pixdim``.
        sform: Code of the sform.
        qform: Code of the qform.
        other: Goes into the qform instead of ``affine``.
        scaling: ``scl_slope`` and ``scl_inter``; NaN is none.
        kind: NIfTI-1 or NIfTI-2.
        endianness: ``<`` or ``>``.
        unit: Of lengths.
        pixdim: Entries of ``pixdim`` to replace.
    """
    header: Any = kind(endianness=endianness)
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    if qform:
        header.set_qform(affine if other is None else other, code=qform)
    if sform:
        header.set_sform(affine, code=sform)
    for index, value in (pixdim or {}).items():
        header["pixdim"][index] = value
    header["scl_slope"], header["scl_inter"] = scaling
    header.set_xyzt_units(unit, "sec")
    header["magic"] = header.single_magic
    header.set_data_offset(header.single_vox_offset)
    voxels = stored.astype(stored.dtype.newbyteorder(endianness)).tobytes(order="F")
    content = header.binaryblock + b"\0\0\0\0" + voxels
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def raw_header(path: Path) -> Any:
    """The header as it is in the file, unchecked."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    size = int.from_bytes(content[:4], "little")
    endianness = "<" if size in (348, 540) else ">"
    kind: Any = nibabel.Nifti1Header if 348 in (size, int.from_bytes(content[:4], "big")) else nibabel.Nifti2Header
    return np.frombuffer(content, kind.template_dtype.newbyteorder(endianness), count=1)[0]


def turned(angles_deg: tuple[float, float, float]) -> NDArray[np.float64]:
    """The scan's affine with the patient turned about the origin."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    return np.asarray(turn @ LAS)


def tilted(shear: float, *, keep_lengths: bool) -> NDArray[np.float64]:
    """The affine of a tilted gantry: every slice lies further forward than the one below it."""
    affine = LAS.copy()
    affine[1, 2] = shear * LAS[2, 2]
    if keep_lengths:
        affine[:3, 2] *= LAS[2, 2] / np.linalg.norm(affine[:3, 2])
    return affine


def microns(path: Path, values: Values) -> None:
    affine = LAS * [[1000], [1000], [1000], [1]]
    write_scan(path, values, affine, qform=1, unit="micron")


MIRRORED = LAS * [[-1], [1], [1], [1]]
STORAGE: dict[str, Writer] = {
    "int16": lambda path, v: write_scan(path, v),
    "int32": lambda path, v: write_scan(path, v.astype(np.int32)),
    "float32": lambda path, v: write_scan(path, v.astype(np.float32)),
    "float64": lambda path, v: write_scan(path, v.astype(np.float64)),
    "uint8 scaled": lambda path, v: write_scan(path, ((v - INTER) // SLOPE).astype(np.uint8), scaling=(SLOPE, INTER)),
    "int16 scaled": lambda path, v: write_scan(path, 2 * v + 40, scaling=(0.5, -20)),
    "int16 scaled downwards": lambda path, v: write_scan(path, 24 - v, scaling=(-1, 24)),
    "float64 scaled": lambda path, v: write_scan(path, v / 1024, scaling=(1024, 0)),
    "slope 0 is no scaling": lambda path, v: write_scan(path, v, scaling=(0, 7)),
    "slope 1": lambda path, v: write_scan(path, v, scaling=(1, 0)),
    "big endian": lambda path, v: write_scan(path, v, endianness=">"),
    "big endian float64": lambda path, v: write_scan(path, v.astype(np.float64), endianness=">"),
}
HEADERS: dict[str, Writer] = {
    "sform only": lambda path, v: write_scan(path, v, sform=1),
    "qform only": lambda path, v: write_scan(path, v, sform=0, qform=1),
    "both": lambda path, v: write_scan(path, v, sform=4, qform=2),
    "both, the sform counts": lambda path, v: write_scan(path, v, sform=2, qform=1, other=MIRRORED),
    "neither, which means LAS": lambda path, v: write_scan(path, v, **NO_FORM),
    "NIfTI-2": lambda path, v: write_scan(path, v, qform=1, kind=nibabel.Nifti2Header),
    "NIfTI-2, big endian": lambda path, v: write_scan(path, v, kind=nibabel.Nifti2Header, endianness=">"),
    "microns": microns,
    "unknown unit": lambda path, v: write_scan(path, v, unit="unknown"),
    "qfac 0": lambda path, v: write_scan(path, v, pixdim={0: 0.0}),
    "times and counts in pixdim": lambda path, v: write_scan(path, v, pixdim={4: 2.5, 5: 0.0, 7: 9.0}),
    "voxel sizes unlike the sform": lambda path, v: write_scan(path, v, pixdim={1: 1.0, 2: 1.0, 3: 1.0}),
}
OBLIQUE: dict[str, NDArray[np.float64]] = {
    "a little": turned((0, 8, 10)),
    "far": turned((25, -20, 30)),
    "tilted gantry": tilted(0.3, keep_lengths=True),
    "tilted and turned": turned((10, 5, -20)) @ np.linalg.inv(LAS) @ tilted(-0.2, keep_lengths=True),
}
