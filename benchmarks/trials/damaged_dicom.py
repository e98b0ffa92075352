"""Damaged DICOM series: bytes, elements and values of one file, of a folder or of a zip of it."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from trials.dicom_bytes import mutant
from trials.mutations import Generator, Mutant, damage_bytes

CT = "1.2.840.10008.5.1.4.1.1.2"
SHAPE = (4, 8, 10)
VALUES: tuple[Any, ...] = (
    *("", "0", "-1", "1", "nan", "inf", "1e300", "1e-300", "99999999999999999999", "x" * 5000, "\0", "../x", "\\\\"),
    *(None, 0, 1, 2, 3, 16, 255, 65535, [0, 0], [1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1e9, 1e-9, 0]),
)
"""What takes the place of a value."""


class DamagedSeries:
    """Mutants of a series of four slices, in a folder or a zip.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._slices = folder / "series", _slices()
        self._folder.mkdir(parents=True, exist_ok=True)

    def make(self, rng: Generator) -> Mutant:
        """Damage one file of the series, or the zip."""
        for path in self._folder.iterdir():
            path.unlink()
        contents = {f"{number}.dcm": data for number, data in enumerate(self._slices)}
        whole = _zip(contents)
        victim = f"{int(rng.integers(len(contents)))}.dcm"
        kind = str(rng.choice(("bytes", "element", "value", "value")))
        damage = {"bytes": damage_bytes, "element": _damage_element, "value": _damage_values}[kind]
        contents[victim], note = damage(contents[victim], rng)
        path = self._folder
        if rng.random() < 0.25:
            path, archive = self._folder / "mutant.zip", _zip(contents)
            if rng.random() < 0.5:
                archive, note = damage_bytes(whole, rng)
            path.write_bytes(archive)
        else:
            for name, data in contents.items():
                (self._folder / name).write_bytes(data)
        return Mutant("DICOM zip" if path.suffix else "DICOM folder", f"{victim}: {note}", path, lambda: _read(path))


def _read(path: Path) -> None:
    from volseg.io.content import scan_sha256
    from volseg.io.volumes import check_image, read_grid, read_volume

    scan_sha256([path])
    volume = read_volume(path)
    check_image(volume, [path])
    assert volume.data.shape[1:] == volume.grid.shape, "shape of the voxels"
    assert read_grid(path).same_as(volume.grid), "grid of the headers"


def _zip(contents: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return packed.getvalue()


def _slices() -> list[bytes]:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
    written = []
    for number, plane in enumerate(pixels):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = CT, f"1.2.3.4.{number}"
        dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
            CT,
            f"1.2.3.4.{number}",
        )
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
        dataset.PatientID, dataset.Modality, dataset.SeriesDescription = "made", "CT", "a made series"
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-5.5, 7, 3.0 * number]
        dataset.PixelSpacing, dataset.SliceThickness = [0.75, 0.75], 3
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.InstanceNumber = 1, -24, number + 1
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PixelData = plane.tobytes()
        dataset["PixelData"].VR = "OW"
        written.append(_written(dataset))
    return written


def _written(dataset: Any) -> bytes:
    from pydicom import dcmwrite

    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _damage_element(data: bytes, rng: Generator) -> tuple[bytes, str]:
    """Damage the bytes of a file, most of them those of elements."""
    seed = int(rng.integers(2**32))
    return mutant(data, random.Random(seed)), f"mutant {seed}"


def _damage_values(data: bytes, rng: Generator) -> tuple[bytes, str]:
    """Set values of one to three elements to extremes, or to those of other types; delete some."""
    import pydicom
    from pydicom.config import disable_value_validation

    dataset, notes = pydicom.dcmread(io.BytesIO(data)), []
    for _ in range(int(rng.integers(1, 4))):
        elements = list(dataset)
        element = elements[int(rng.integers(len(elements)))]
        value = VALUES[int(rng.integers(len(VALUES)))]
        before, removed = element.value, rng.random() < 0.2
        try:
            with disable_value_validation():
                if removed:
                    del dataset[element.tag]
                else:
                    element.value = value
                changed = _written(dataset)
        except Exception:  # pydicom does not write this value
            element.value = before
            dataset[element.tag] = element
            continue
        data = changed
        notes.append(f"{element.keyword} = {'removed' if removed else repr(str(value)[:40])}")
    return data, "; ".join(notes) or "none"
