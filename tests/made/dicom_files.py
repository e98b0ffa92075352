"""DICOM series written with pydicom: single slices and enhanced multi-frame objects of CT or MR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT, ENHANCED_MR = f"{CT}.1", f"{MR}.1"
SCREENSHOT, REPORT = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.11"
PLANES = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (*np.array([2, 1, 2]) / 3, *np.array([-2, 2, 1]) / 3),
}
"""Directions of increasing column and row, LPS+."""

Change = Callable[[int, Dataset], object]


def stored_values(shape: Sequence[int] = (5, 4, 6), dtype: type[np.generic] = np.int16, seed: int = 0) -> np.ndarray:
    """Random pixels ``(slices, rows, columns)``."""
    low = 0 if np.dtype(dtype).kind == "u" else -900
    return np.random.default_rng(seed).integers(low, min(np.iinfo(dtype).max, 3000), shape).astype(dtype)


def slice_dataset(pixels: np.ndarray, sop_class: str = CT, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """An object with pixels ``(rows, columns)`` or ``(frames, rows, columns)`` and no geometry."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid(entropy_srcs=[str(pixels.tobytes())])
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.FrameOfReferenceUID, dataset.PatientID = "1.2.3.5", "made"
    dataset.Modality, dataset.SeriesDescription = "CT" if sop_class.startswith(CT) else "MR", "a made series"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return dataset


def geometry(plane: str, gap_mm: float, origin_mm: Sequence[float], number: int) -> tuple[list[float], list[float]]:
    """ImageOrientationPatient, and ImagePositionPatient of a slice."""
    orientation = np.array(PLANES[plane], np.float64)
    normal = np.cross(orientation[:3], orientation[3:])
    return orientation.tolist(), (np.array(origin_mm) + gap_mm * number * normal).tolist()


def write_series(
    folder: Path,
    stored: np.ndarray | None = None,
    *,
    plane: str = "axial",
    spacing_mm: tuple[float, float] = (0.75, 1.25),
    gap_mm: float = 2.5,
    origin_mm: Sequence[float] = (-30.0, 20.0, 10.0),
    sop_class: str = CT,
    change: Change | None = None,
    suffix: str = ".dcm",
) -> list[Path]:
    """Write a file per slice, named against the order of the slices.

    Args:
        folder: Where to write.
        stored: Pixels ``(slices, rows, columns)``; random int16 by default.
        plane: One of ``PLANES``.
        spacing_mm: Distance of the rows, and of the columns.
        gap_mm: Distance of the slices.
        origin_mm: Position of the first slice, LPS+.
        sop_class: Kind of the objects.
        change: Called with the number of a slice and its object before it is written; ``False`` leaves it out.
        suffix: Ending of the names.

    Returns:
        The files in the order of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = stored_values() if stored is None else stored
    paths = []
    for number, pixels in enumerate(stored):
        dataset = slice_dataset(pixels, sop_class)
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = geometry(plane, gap_mm, origin_mm, number)
        dataset.PixelSpacing = list(spacing_mm)
        dataset.InstanceNumber, dataset.SliceThickness = number * 7 % 5 + 1, 1.5
        if change is not None and change(number, dataset) is False:
            continue
        paths.append(folder / f"I{len(stored) - number:03d}{suffix}")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def move(number: int, offset_mm: tuple[float, float, float]) -> Change:
    """Return a change of the position of one slice."""

    def change(at: int, dataset: Dataset) -> None:
        if at == number:
            position = np.array([float(value) for value in dataset.ImagePositionPatient])
            dataset.ImagePositionPatient = (position + offset_mm).tolist()

    return change


def put(number: int | None = None, **tags: object) -> Change:
    """Return a change of tags of one slice, or of all; ``None`` removes a tag."""

    def change(at: int, dataset: Dataset) -> None:
        if number in (None, at):
            for keyword, value in tags.items():
                if value is None:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)

    return change


def tilt(number: int, dataset: Dataset) -> None:
    """Shift every slice forward, as a gantry tilted by 12 degrees does."""
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, float(y) + number * 2.5 * np.tan(np.radians(12)), z]


def write_enhanced(
    path: Path,
    stored: np.ndarray,
    *,
    plane: str = "axial",
    spacing_mm: tuple[float, float] = (0.75, 1.25),
    gap_mm: float = 2.5,
    origin_mm: Sequence[float] = (-30.0, 20.0, 10.0),
    slopes: Sequence[float] | None = None,
    sop_class: str = ENHANCED_CT,
    order: Sequence[int] | None = None,
    change: Callable[[Dataset], object] | None = None,
) -> Path:
    """Write one multi-frame object; arguments as for :func:`write_series`, with a slope per slice."""
    order = range(len(stored)) if order is None else order
    dataset = slice_dataset(stored[list(order)], sop_class)
    dataset.NumberOfFrames = len(stored)
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SpacingBetweenSlices = list(spacing_mm), gap_mm
    orientation = Dataset()
    orientation.ImageOrientationPatient, _ = geometry(plane, gap_mm, origin_mm, 0)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number in order:
        position, values, group = Dataset(), Dataset(), Dataset()
        _, position.ImagePositionPatient = geometry(plane, gap_mm, origin_mm, number)
        values.RescaleSlope, values.RescaleIntercept = (1 if slopes is None else slopes[number]), 0
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    if change is not None:
        change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def jpeg_codestream(pixels: np.ndarray, compressor: str, scratch: Path) -> tuple[UID, bytes]:
    """Compress ``(rows, columns)`` with GDCM as ``JPEG`` (lossless) or ``JPEG2000``: transfer syntax and frame."""
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(scratch / "compressed.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(SimpleITK.GetImageFromArray(pixels[None]))
    dataset = dcmread(scratch / "compressed.dcm")
    return dataset.file_meta.TransferSyntaxUID, next(generate_frames(dataset.PixelData, number_of_frames=1))


def compressed(dataset: Dataset, compressor: str, scratch: Path) -> None:
    """Compress the pixels of an object: ``RLE``, ``JPEG`` or ``JPEG2000``."""
    if compressor == "RLE":
        dataset.compress(RLELossless)
        return
    shape = (dataset.Rows, dataset.Columns)
    kind = ("i" if dataset.PixelRepresentation else "u") + str(dataset.BitsAllocated // 8)
    pixels = np.frombuffer(dataset.PixelData, kind, shape[0] * shape[1]).reshape(shape)
    dataset.file_meta.TransferSyntaxUID, frame = jpeg_codestream(pixels, compressor, scratch)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
