"""Bad scans: NIfTI, other formats of single files, and masks."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK

from tests.made.bad_inputs.cases import BadInput
from tests.made.datasets import save_nifti
from tests.made.scan_files import write_scan
from volseg.io.volumes import check_image, read_channels, read_mask, read_volume

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
RAMP = np.arange(60, dtype=np.int16).reshape(5, 4, 3)


def read_scan(name: str = "scan.nii.gz") -> None:
    """Read a scan as every command does: its voxels, its grid, and the check of its values."""
    check_image(read_volume(Path(name)), [Path(name)])


def bytes_of(name: str, content: bytes) -> Callable[[], None]:
    """Return an attempt to read a file with this content."""

    def attempt() -> None:
        Path(name).write_bytes(content)
        read_scan(name)

    return attempt


def values_of(values: np.ndarray) -> Callable[[], None]:
    """Return an attempt to read a NIfTI file with these voxels."""

    def attempt() -> None:
        save_nifti(Path("scan.nii.gz"), values, AFFINE)
        read_scan()

    return attempt


def header_of(**changes: Any) -> Callable[[], None]:
    """Return an attempt to read a NIfTI file with a header that `write_scan` changes."""

    def attempt() -> None:
        write_scan(Path("scan.nii"), RAMP, **changes)
        read_scan("scan.nii")

    return attempt


def one_voxel(value: float, dtype: type[np.generic] = np.float32) -> np.ndarray:
    """Return values of which one is another."""
    values = RAMP.astype(dtype)
    values[1, 1, 1] = value
    return values


def typing_error() -> None:
    write_scan(Path("scan_01.nii.gz"), RAMP)
    read_scan("scan_1.nii.gz")


def cut_off() -> None:
    path = write_scan(Path("whole.nii.gz"), RAMP)
    Path("scan.nii.gz").write_bytes(path.read_bytes()[:200])
    read_scan()


def fewer_voxels() -> None:
    path = write_scan(Path("scan.nii"), RAMP)
    path.write_bytes(path.read_bytes()[:-20])
    read_scan("scan.nii")


def another_kind() -> None:
    Path("scan.nii.gz").write_bytes(gzip.compress(b"PNG"))
    read_scan()


def dangling_link() -> None:
    Path("scan.nii.gz").symlink_to("disk/scan.nii.gz")
    read_scan()


def colours() -> None:
    image = np.zeros((5, 4, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    save_nifti(Path("scan.nii.gz"), image, AFFINE)
    read_scan()


def two_grids() -> None:
    save_nifti(Path("t1.nii.gz"), RAMP, AFFINE)
    save_nifti(Path("t2.nii.gz"), RAMP, AFFINE * [[1], [1], [2], [1]])
    read_channels([Path("t1.nii.gz"), Path("t2.nii.gz")])


def pair_without_header() -> None:
    nibabel.save(nibabel.Nifti1Pair(RAMP, AFFINE), "scan.img")
    Path("scan.hdr").unlink()
    read_scan("scan.img")


def analyze(name: str) -> Callable[[], None]:
    """Return an attempt to read a file of an Analyze 7.5 image, which has two."""

    def attempt() -> None:
        nibabel.save(nibabel.AnalyzeImage(RAMP, AFFINE), "scan.img")
        read_scan(name)

    return attempt


SCANS = (
    BadInput("A path with a typing error", "scan_1.nii.gz", typing_error),
    BadInput("A `.nii.gz` file that was cut off while copying", "scan.nii.gz", cut_off),
    BadInput("A `.nii` file that was cut off while copying", "scan.nii", fewer_voxels),
    BadInput("An empty file", "scan.nii.gz", bytes_of("scan.nii.gz", b"")),
    BadInput("Another file that was named `.nii.gz`", "scan.nii.gz", another_kind),
    BadInput("A picture", "scan.png", bytes_of("scan.png", b"\x89PNG\r\n")),
    BadInput("A link to a disk that is not there", "scan.nii.gz", dangling_link),
    BadInput("A single slice, saved as 2D", "scan.nii.gz", values_of(RAMP[:, :, 0])),
    BadInput("A scan that shows nothing", "scan.nii.gz", values_of(np.full((5, 4, 3), -1000, np.int16))),
    BadInput("A scan with NaN outside of the body", "scan.nii.gz", values_of(one_voxel(np.nan))),
    BadInput("Values too large for float32", "scan.nii.gz", values_of(one_voxel(1e300, np.float64))),
    BadInput("A picture in colour", "scan.nii.gz", colours),
    BadInput("Voxel sizes in mm, called metres", "scan.nii", header_of(unit="meter")),
    BadInput("A header with a scaling that is not finite", "scan.nii", header_of(scaling=(np.inf, 0.0))),
    BadInput("A header whose axes all point in one direction", "scan.nii", header_of(affine=np.ones((4, 4)))),
    BadInput("A header with voxels of a kilometre", "scan.nii", header_of(affine=np.diag([1e6, 1e6, 1e6, 1.0]))),
    BadInput("Channels of one patient that were not resampled to each other", "t2.nii.gz", two_grids),
)  # fmt: skip


def nrrd_with(old: bytes, new: bytes) -> Callable[[], None]:
    """Return an attempt to read a NRRD file with a part of its header replaced."""

    def attempt() -> None:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(RAMP), "scan.nrrd")
        content = Path("scan.nrrd").read_bytes()
        assert old in content
        Path("scan.nrrd").write_bytes(content.replace(old, new, 1))
        read_scan("scan.nrrd")

    return attempt


def voxels_gone(suffix: str) -> Callable[[], None]:
    """Return an attempt to read a header whose file of voxels was not copied."""

    def attempt() -> None:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(RAMP), f"scan{suffix}")
        Path("scan.raw").unlink()
        read_scan(f"scan{suffix}")

    return attempt


def voxels_elsewhere() -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(RAMP), "scan.mhd")
    header = Path("scan.mhd").read_text().replace("scan.raw", "../raw/scan.raw")
    Path("scan.mhd").write_text(header)
    read_scan("scan.mhd")


def mha_cut_off() -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(RAMP), "scan.mha")
    Path("scan.mha").write_bytes(Path("scan.mha").read_bytes()[:-20])
    read_scan("scan.mha")


def mgz_without_directions() -> None:
    nibabel.save(nibabel.MGHImage(RAMP, AFFINE), "scan.mgz")
    content = bytearray(gzip.decompress(Path("scan.mgz").read_bytes()))
    content[28:30] = bytes(2)  # goodRASFlag
    Path("scan.mgz").write_bytes(gzip.compress(content))
    read_scan("scan.mgz")


def mgz_cut_off() -> None:
    nibabel.save(nibabel.MGHImage(RAMP, AFFINE), "scan.mgh")
    Path("scan.mgh").write_bytes(Path("scan.mgh").read_bytes()[:350])
    read_scan("scan.mgh")


OTHER_FORMATS = (
    BadInput("A `.nhdr` header without its file of voxels", "scan.nhdr", voxels_gone(".nhdr")),
    BadInput("A `.mhd` header whose voxels lie in another folder", "scan.mhd", voxels_elsewhere),
    BadInput("A NRRD file of more voxels than it holds", "scan.nrrd", nrrd_with(b"sizes: 3 4 5", b"sizes: 3 4 5000")),
    BadInput("A NRRD file in the space of a scanner", "scan.nrrd",
             nrrd_with(b"left-posterior-superior", b"scanner-xyz")),
    BadInput("A NRRD file in an unknown unit", "scan.nrrd",
             nrrd_with(b"space origin", b'space units: "mm" "mm" "slices"\nspace origin')),
    BadInput("A `.mha` file that was cut off while copying", "scan.mha", mha_cut_off),
    BadInput("A FreeSurfer volume without directions", "scan.mgz", mgz_without_directions),
    BadInput("A FreeSurfer volume that was cut off while copying", "scan.mgh", mgz_cut_off),
    BadInput("An `.img` file without its `.hdr`", "scan.img", pair_without_header),
    BadInput("Analyze 7.5 images of old SPM or other programs", "scan.hdr", analyze("scan.img")),
    BadInput("The `.hdr` file in place of the `.img`", "scan.hdr", analyze("scan.hdr")),
)  # fmt: skip


def mask_of(values: np.ndarray) -> Callable[[], object]:
    """Return an attempt to read a mask with these values."""

    def attempt() -> object:
        return read_mask(save_nifti(Path("mask.nii.gz"), values, AFFINE))

    return attempt


MASKS = (
    BadInput("A mask that was resampled with interpolation", "mask.nii.gz", mask_of(one_voxel(0.5))),
    BadInput("A probability map in place of a mask", "mask.nii.gz", mask_of(np.stack([RAMP, RAMP], -1))),
    BadInput("Label values too large", "mask.nii.gz", mask_of(one_voxel(300_000, np.int32))),
)
