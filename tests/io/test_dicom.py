"""DICOM series: the voxels and the place that ITK's own reader gives, in every plane, order and way of storing."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from tests.made.dicom_files import (
    ENHANCED_MR,
    MR,
    PLANES,
    REPORT,
    SCREENSHOT,
    compressed,
    put,
    slice_dataset,
    stored_values,
    write_enhanced,
    write_series,
)
from volseg.errors import DataError
from volseg.io.dicom import series_files, series_headers
from volseg.io.remarks import collect
from volseg.io.volumes import count_channels, read_grid, read_volume


def itk_series(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def hounsfield(number: int, dataset: Dataset) -> None:
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024


@pytest.mark.parametrize("gap_mm", [2.5, -2.5])  # the second: files in reverse order
@pytest.mark.parametrize("plane", PLANES)
def test_the_same_voxels_in_the_same_place_as_by_itk(plane: str, gap_mm: float, tmp_path: Path) -> None:
    write_series(tmp_path, plane=plane, gap_mm=gap_mm, change=hounsfield)
    oracle, volume = itk_series(tmp_path), read_volume(tmp_path)
    assert volume.data.dtype == np.int16
    assert np.array_equal(volume.data[0], SimpleITK.GetArrayFromImage(oracle).T)
    for corner in ((0, 0, 0), (5, 0, 0), (0, 3, 0), (5, 3, 4)):
        place = np.array(oracle.TransformIndexToPhysicalPoint(corner)) * (-1, -1, 1)
        assert volume.grid.to_mm(corner) == pytest.approx(place, abs=1e-9)
    assert read_grid(tmp_path) == volume.grid
    assert volume.grid.affine.dtype == np.float64


def test_the_axes_of_the_patient_by_hand(tmp_path: Path) -> None:
    stored = stored_values((2, 3, 4))
    write_series(tmp_path, stored, spacing_mm=(0.5, 2.0), gap_mm=3.0, origin_mm=(10, 20, 30))
    volume = read_volume(tmp_path)
    assert volume.data[0, 3, 1, 0] == stored[0, 1, 3]  # column, row, slice
    assert volume.grid.affine.tolist() == [[-2, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]]
    assert volume.grid.orientation == "LPS"


@pytest.mark.parametrize("whole", [True, False])
def test_each_slice_has_its_own_slope(whole: bool, tmp_path: Path) -> None:
    stored = stored_values()
    slopes = [1, 2, 3, 4, 5] if whole else [0.5, 0.123456789, 1, 2, 1.5]

    def rescale(number: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slopes[number], -7

    write_series(tmp_path / "single", stored, change=rescale)
    expected = (stored.astype(np.float64) * np.array(slopes)[:, None, None] - 7).T
    values = read_volume(tmp_path / "single").data[0]
    assert values.dtype == (np.int16 if whole else np.float32)
    assert np.array_equal(values, expected.astype(values.dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
def test_whole_values_that_do_not_fit_in_int16_are_float32(dtype: type[np.generic], tmp_path: Path) -> None:
    stored = stored_values(dtype=dtype)
    write_series(tmp_path / "small", stored)
    small = read_volume(tmp_path / "small").data[0]
    assert small.dtype == np.int16
    assert np.array_equal(small, stored.T)
    if np.dtype(dtype).itemsize > 1:
        write_series(tmp_path / "large", stored, change=lambda n, d: setattr(d, "RescaleSlope", 20 if n == 3 else 1))
        large = read_volume(tmp_path / "large").data[0]
        assert large.dtype == np.float32
        assert np.array_equal(large, (stored.astype(np.int64) * [[[1]], [[1]], [[1]], [[20]], [[1]]]).T)


def test_large_stored_values_with_a_large_intercept_are_exact(tmp_path: Path) -> None:
    stored = (stored_values().astype(np.int64) * 10 + 2_000_000_000).astype(np.uint32)
    write_series(tmp_path, stored, change=lambda n, d: setattr(d, "RescaleIntercept", -2_000_000_000))
    values = read_volume(tmp_path).data[0]
    assert values.dtype == np.int16
    assert np.array_equal(values, (stored.astype(np.int64) - 2_000_000_000).T)


def test_bits_above_the_stored_ones_are_no_part_of_the_value(tmp_path: Path) -> None:
    values = stored_values()

    def twelve_bits(number: int, dataset: Dataset) -> None:
        pixels = values[number].clip(-2048, 2047).astype(np.int16) & 0x0FFF | 0x5000
        dataset.PixelData = pixels.tobytes()
        dataset.BitsStored, dataset.HighBit = 12, 11

    write_series(tmp_path, values, change=twelve_bits)
    assert np.array_equal(read_volume(tmp_path).data[0], values.clip(-2048, 2047).T)


@pytest.mark.parametrize("compressor", [None, "RLE", "JPEG"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_values_beyond_the_stored_bits_are_reported(
    dtype: type[np.generic], compressor: str | None, tmp_path: Path
) -> None:
    """They are ignored, as by ITK, and an overlay there is no cause for it."""
    values = stored_values((3, 16, 20), dtype).clip(max=2047)

    def twelve_bits(number: int, dataset: Dataset) -> None:
        if compressor:
            compressed(dataset, compressor, tmp_path)
        dataset.BitsStored, dataset.HighBit = 12, 11

    write_series(tmp_path / "fits", values, change=twelve_bits)
    values[1, 2, 3] = 5000
    write_series(tmp_path / "beyond", values, change=twelve_bits)
    write_series(tmp_path / "overlay", values, change=lambda n, d: (twelve_bits(n, d), d.add_new(0x60000102, "US", 12)))
    for name in ("fits", "beyond", "overlay"):
        with collect() as findings:
            volume = read_volume(tmp_path / name)
        texts = ["BitsStored 12; 1 slice, such as I002.dcm"] if name == "beyond" else []
        assert [(one.kind, one.message) for one in findings] == [("unused-bits", text) for text in texts]
        assert name == "fits" or volume.data[0, 3, 2, 1] == 5000 - 4096


def test_bits_below_the_stored_ones(tmp_path: Path) -> None:
    """Values at the upper end of their bytes are read where the bits below are empty."""
    values = stored_values(dtype=np.uint16).clip(0, 4095)
    write_series(tmp_path / "left", values << 4, change=put(BitsStored=12, HighBit=15))
    assert np.array_equal(read_volume(tmp_path / "left").data[0], values.T)
    write_series(tmp_path / "wrong", values, change=put(BitsStored=12, HighBit=15))
    with pytest.raises(
        DataError, match=r"not where the header says[\s\S]*lowest 4 bits of 16; BitsStored 12, HighBit 15"
    ):
        read_volume(tmp_path / "wrong")


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """Return which pixels lie outside of a circle, as in slices of CT."""
    rows, columns = np.indices(shape[1:]) - np.array([[[7.5]], [[9.5]]])
    return np.broadcast_to(rows**2 + columns**2 > 90, shape)


PADDING: dict[str, tuple[type[np.generic], int, int, dict[str, Any], int | None]] = {
    "below the image": (np.int16, -2000, -1024, {}, None),
    "stated as unsigned": (np.int16, -2000, -1024, {"PixelPaddingValue": 63536}, None),
    "as water": (np.int16, 0, 0, {}, -900),
    "as metal": (np.uint16, 4095, -1024, {}, -924),
    "a range": (np.uint16, 4090, -1024, {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}, -924),
    "beyond the stored bits": (np.uint16, 63536, -1024, {"BitsStored": 12, "HighBit": 11}, -924),
    "air": (np.uint16, 0, -1024, {}, None),
    "of another value": (np.uint16, 4095, -1024, {"PixelPaddingValue": 5}, None),
    "MR, zero": (np.int16, 0, 0, {"Modality": "MR"}, None),
    "MR, above the image": (np.int16, 32767, 0, {"Modality": "MR"}, -900),
}


@pytest.mark.parametrize("kind", PADDING)
def test_padding_does_not_look_like_tissue(kind: str, tmp_path: Path) -> None:
    dtype, padding, intercept, tags, filler = PADDING[kind]
    stored = stored_values((3, 16, 20), dtype).clip(100 if dtype is np.uint16 else None)
    stored[0, 8, 10] = -900 if dtype is np.int16 else 100
    outside = corners(stored.shape)
    stored[outside] = stored[:, 8, 8] = padding  # the last is a pixel of the image
    stated = {"PixelPaddingValue": padding, **tags}

    def change(number: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, intercept
        for keyword, value in stated.items():
            if keyword.startswith("Pixel"):
                dataset.add_new(keyword, "US" if value > 32767 else "SS", value)
            else:
                setattr(dataset, keyword, value)

    write_series(tmp_path, stored, change=change)
    with collect() as findings:
        values = read_volume(tmp_path).data[0].T
    real = (stored & 0x0FFF if "BitsStored" in tags else stored).astype(np.int64) + intercept
    if filler is not None:
        real[outside] = filler
    assert np.array_equal(values, real)
    assert [one.kind for one in findings] == ["padding"] * (filler is not None)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_transfer_syntaxes(syntax: str, tmp_path: Path) -> None:
    stored = stored_values()
    for number, path in enumerate(write_series(tmp_path, stored)):
        dataset = dcmread(path)
        dataset.PixelData = stored[number].astype(">i2" if syntax == ExplicitVRBigEndian else "<i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        little = syntax != ExplicitVRBigEndian
        fresh = Dataset()
        fresh.update(dataset)
        fresh.file_meta = dataset.file_meta
        fresh.save_as(path, implicit_vr=little, little_endian=little, enforce_file_format=True)
    assert np.array_equal(read_volume(tmp_path).data[0], stored.T)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("compressor", ["RLE", "JPEG", "JPEG2000"])
def test_compressed_transfer_syntaxes(compressor: str, dtype: type[np.generic], tmp_path: Path) -> None:
    stored = stored_values((3, 16, 20), dtype)

    def compress(number: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -5
        compressed(dataset, compressor, tmp_path)

    write_series(tmp_path / "series", stored, change=compress)
    assert np.array_equal(read_volume(tmp_path / "series").data[0], stored.astype(np.int64).T * 2 - 5)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_bigendian", "693_J2KI"]
)
def test_files_of_scanners_that_come_with_pydicom(name: str, tmp_path: Path) -> None:
    """JPEG-LS among them, which nothing here can write."""
    source = get_testdata_file(f"{name}.dcm", download=False)
    assert isinstance(source, str)
    shutil.copy(source, tmp_path / "slice")
    oracle = SimpleITK.ReadImage(source)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.data[0], SimpleITK.GetArrayFromImage(oracle).T)
    assert volume.grid.to_mm((3, 5, 0)) == pytest.approx(
        np.array(oracle.TransformIndexToPhysicalPoint((3, 5, 0))) * (-1, -1, 1)
    )


def test_deflated_objects_beside_the_slices_are_skipped(tmp_path: Path) -> None:
    write_series(tmp_path)
    report = slice_dataset(stored_values()[0], REPORT, DeflatedExplicitVRLittleEndian)
    del report.PixelData
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    assert np.array_equal(read_volume(tmp_path).data[0], stored_values().T)


@pytest.mark.parametrize("plane", PLANES)
def test_an_enhanced_object_is_the_volume_of_the_classic_series(plane: str, tmp_path: Path) -> None:
    stored, slopes = stored_values(), [1, 2, 0.5, 4, 1]
    write_series(
        tmp_path / "classic",
        stored,
        plane=plane,
        sop_class=MR,
        change=lambda n, d: setattr(d, "RescaleSlope", slopes[n]),
    )
    file = write_enhanced(
        tmp_path / "enhanced" / "e.dcm",
        stored,
        plane=plane,
        slopes=slopes,
        sop_class=ENHANCED_MR,
        order=(3, 0, 4, 1, 2),
    )
    # RescaleIntercept is missing in the classic series, which counts as 0
    classic, enhanced = read_volume(tmp_path / "classic"), read_volume(tmp_path / "enhanced")
    assert np.array_equal(classic.data, enhanced.data)
    assert classic.grid == enhanced.grid
    assert np.array_equal(read_volume(file).data, classic.data)


def test_frames_of_one_object_are_decoded_by_their_positions(tmp_path: Path) -> None:
    stored = stored_values((4, 8, 10))
    file = write_enhanced(
        tmp_path / "e.dcm", stored, order=(2, 0, 3, 1), change=lambda dataset: compressed(dataset, "RLE", tmp_path)
    )
    assert np.array_equal(read_volume(file).data[0], stored.T)


def test_a_zip_and_nested_folders_are_the_same_series(tmp_path: Path) -> None:
    files = write_series(tmp_path / "flat")
    (tmp_path / "deep" / "study" / "a").mkdir(parents=True)
    (tmp_path / "deep" / "study" / "b").mkdir()
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, file in enumerate(files):
            archive.write(file, f"study/{'ab'[number % 2]}/{file.name}")
            (tmp_path / "deep" / "study" / "ab"[number % 2] / file.stem).write_bytes(file.read_bytes())  # no suffix
    flat = read_volume(tmp_path / "flat")
    for other in (tmp_path / "deep", tmp_path / "one.zip", files[2]):
        volume = read_volume(other)
        assert np.array_equal(volume.data, flat.data)
        assert volume.grid == flat.grid == read_grid(other)
        assert count_channels(other) == 1


def test_a_single_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((1, 4, 6)))
    assert read_volume(tmp_path).grid.spacing_mm == (1.25, 0.75, 1.5)


def test_files_without_the_preamble(tmp_path: Path) -> None:
    expected = read_volume(write_series(tmp_path / "usual")[0].parent)
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "usual").iterdir():
        dataset = dcmread(path)
        fresh = Dataset()
        fresh.update(dataset)
        fresh.save_as(tmp_path / "old" / path.stem, implicit_vr=True, little_endian=True)
    volume = read_volume(tmp_path / "old")
    assert np.array_equal(volume.data, expected.data)
    assert volume.grid == expected.grid


def test_the_files_and_headers_of_a_series_are_in_the_order_of_its_slices(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series")
    assert series_files(tmp_path / "series") == files
    headers = series_headers(tmp_path / "series")
    assert [header.ImagePositionPatient[2] for header in headers] == [10.0, 12.5, 15.0, 17.5, 20.0]
    assert all(header.PatientID == "made" and "PixelData" not in header for header in headers)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    zipped = series_headers(tmp_path / "s.zip")
    assert [header.SOPInstanceUID for header in zipped] == [header.SOPInstanceUID for header in headers]


def test_what_lies_beside_the_slices_is_skipped_and_dicom_objects_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path, change=hounsfield)
    expected = read_volume(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "seg.nii.gz"):
        (tmp_path / name).write_bytes(b"something else, longer than a preamble " * 9)
    report = slice_dataset(stored_values()[0], REPORT)
    del report.PixelData
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    screenshot = slice_dataset(stored_values()[0], SCREENSHOT)
    screenshot.save_as(tmp_path / "screenshot", enforce_file_format=True)
    localizer = slice_dataset(stored_values()[0])
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localizer.save_as(tmp_path / "scout", enforce_file_format=True)
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "report.dcm").read_bytes())
    with caplog.at_level("INFO"):
        volume = read_volume(tmp_path)
    assert np.array_equal(volume.data, expected.data)
    assert volume.grid == expected.grid
    for name in ("report.dcm (Basic Text SR Storage)", "screenshot (Secondary Capture Image Storage)", "scout (local"):
        assert name in caplog.text
    assert "notes" not in caplog.text
