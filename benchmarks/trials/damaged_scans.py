"""Damaged scans and masks of every file format, and the functions that read them."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.freesurfer.mghformat import MGHImage
from numpy.typing import NDArray

from trials.mutations import Generator, Mutant, damage_bytes, damage_header, damage_lines

SHAPE = (12, 10, 8)
AFFINE = np.diag([1.5, 1.5, 3, 1])
HeaderDamage = Callable[[bytes, Generator], tuple[bytes, str]]


@dataclass(frozen=True)
class WholeScan:
    """A scan without damage.

    Attributes:
        kind: Name of the format.
        files: Name and content of each file; the first is the one that is read.
        header: Name of the file with the header.
        damage: Damages values of its header.
        compress: Ending of the name where the file may be compressed as a whole.
    """

    kind: str
    files: dict[str, bytes]
    header: str
    damage: HeaderDamage
    compress: str | None = None


class DamagedScans:
    """Mutants of scans of several formats, types, versions and byte orders.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "volumes"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._kinds = (_nifti(), _nifti(), _pairs(), _itk("nrrd"), _itk("seg.nrrd"), _itk("mha"), _itk("mhd"), _mgh())

    def make(self, rng: Generator) -> Mutant:
        """Damage the header or the bytes of a scan or mask; some are compressed before, some after the damage."""
        scans = self._kinds[int(rng.integers(len(self._kinds)))]
        scan = scans[int(rng.integers(len(scans)))]
        for path in self._folder.iterdir():
            path.unlink()
        for name, content in scan.files.items():
            (self._folder / name).write_bytes(content)
        path, note = self._damage(scan, rng)
        if rng.random() < 0.5:
            return Mutant(f"{scan.kind} scan", note, path, lambda: _read_scan(path, self._folder / "copy.nii.gz"))
        return Mutant(f"{scan.kind} mask", note, path, lambda: _read_mask(path))

    def _damage(self, scan: WholeScan, rng: Generator) -> tuple[Path, str]:
        """Write the damaged file; return the path that is read, and what was done."""
        first = next(iter(scan.files))
        compressed, outside = scan.compress is not None and rng.random() < 0.5, rng.random() < 0.5
        fields = rng.random() < 0.6 and not (compressed and outside)
        name = scan.header if fields else str(rng.choice(np.array(list(scan.files), dtype=object)))
        data = scan.files[name]
        data = gzip.compress(data, 1, mtime=0) if compressed and outside else data
        data, note = scan.damage(data, rng) if fields else damage_bytes(data, rng)
        if compressed:
            (self._folder / name).unlink()
            first = name = f"mutant{scan.compress}"
            data = data if outside else gzip.compress(data, 1, mtime=0)
        (self._folder / name).write_bytes(data)
        return self._folder / first, f"{name}: {note}"


def _read_scan(path: Path, copy: Path) -> None:
    """Read a scan, touch every voxel and write a mask with its header, which must be read back on the same grid."""
    from volseg.geometry.volume import Mask
    from volseg.io.volumes import check_image, read_grid, read_volume, write_mask

    volume = read_volume(path)
    check_image(volume, [path])
    assert volume.data.shape[1:] == volume.grid.shape, "shape of the voxels"
    assert read_grid(path).same_as(volume.grid), "grid of the header"
    write_mask(copy, Mask(np.zeros(volume.grid.shape, np.uint8), volume.grid), source=path)
    assert read_grid(copy).same_as(volume.grid), "grid of the mask"


def _read_mask(path: Path) -> None:
    from volseg.io.volumes import read_mask

    mask = read_mask(path)
    assert mask.labels.shape == mask.grid.shape, "shape of the labels"


def _nifti() -> list[WholeScan]:
    """Return NIfTI files: types, channels, scaling, versions, byte orders."""
    rng = np.random.default_rng(0)
    scans = []

    def add(values: NDArray[Any], kind: Any = nibabel.Nifti1Image, swapped: bool = False, slope: float = 1) -> None:
        header = kind.header_class(endianness=">" if swapped else "<")
        header.set_data_dtype(values.dtype)
        image = kind(values, AFFINE, header)
        image.header.set_slope_inter(slope, 0)
        damage = partial(damage_header, layout=image.header.structarr.dtype)
        scans.append(WholeScan("NIfTI", {"mutant.nii": image.to_bytes()}, "mutant.nii", damage, ".nii.gz"))

    add(rng.normal(0, 300, SHAPE).astype(np.int16))
    add(rng.normal(0, 300, SHAPE).astype(np.int16), swapped=True)
    add(rng.normal(0, 1, SHAPE).astype(np.float32), nibabel.Nifti2Image)
    add(rng.normal(0, 1, (*SHAPE, 2)).astype(np.float64))
    add(rng.integers(0, 4, SHAPE).astype(np.uint8))
    add(rng.integers(0, 4, SHAPE).astype(np.uint16), slope=2)
    return scans


def _pairs() -> list[WholeScan]:
    """Return pairs of ``.img`` and ``.hdr``."""
    values = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.int16)
    image = nibabel.Nifti1Pair(values, AFFINE)
    files = {f"mutant.{part}": _written(image, f"mutant.{part}") for part in ("img", "hdr")}
    return [WholeScan("IMG/HDR", files, "mutant.hdr", partial(damage_header, layout=image.header.structarr.dtype))]


def _written(image: Any, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        nibabel.save(image, Path(folder, "mutant.img"))
        return Path(folder, name).read_bytes()


def _itk(ending: str) -> list[WholeScan]:
    """Return files of NRRD or MetaImage: types, compression, several channels, voxels in a file of their own."""
    import SimpleITK

    rng = np.random.default_rng(2)
    scans = []
    for values in (rng.integers(0, 4, SHAPE).astype(np.uint8), rng.normal(0, 300, SHAPE).astype(np.int16)):
        for compressed in (False, True):
            image = SimpleITK.GetImageFromArray(values)
            image.SetSpacing((3.0, 1.5, 1.5))
            with tempfile.TemporaryDirectory() as folder:
                SimpleITK.WriteImage(image, f"{folder}/mutant.{ending}", useCompression=compressed)
                # The header is first: ".mhd" comes before ".raw" and ".zraw".
                files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
            kind = {"nrrd": "NRRD", "seg.nrrd": "NRRD", "mha": "MHA", "mhd": "MHD"}[ending]
            separator = "\n\n" if "nrrd" in ending else "LOCAL\n"
            scans.append(WholeScan(kind, files, f"mutant.{ending}", partial(damage_lines, end=separator.encode())))
    return scans


def _mgh() -> list[WholeScan]:
    """Return files of FreeSurfer."""
    rng = np.random.default_rng(3)
    scans = []
    for values in (rng.integers(0, 4, SHAPE).astype(np.uint8), rng.normal(0, 1, SHAPE).astype(np.float32)):
        image = MGHImage(values, AFFINE)
        damage = partial(damage_header, layout=image.header.structarr.dtype)
        scans.append(WholeScan("MGH/MGZ", {"mutant.mgh": image.to_bytes()}, "mutant.mgh", damage, ".mgz"))
    return scans
