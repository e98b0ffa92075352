"""Bad DICOM series."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from tests.made.bad_inputs.cases import BadInput
from tests.made.bad_inputs.scans import read_scan
from tests.made.dicom_files import SCREENSHOT, Change, move, put, slice_dataset, stored_values, tilt, write_series

SERIES = "series"


def series_with(change: Change) -> Callable[[], None]:
    """Return an attempt to read a series whose slices are changed before they are written."""

    def attempt() -> None:
        write_series(Path(SERIES), change=change)
        read_scan(SERIES)

    return attempt


def empty_folder() -> None:
    Path(SERIES).mkdir()
    Path(SERIES, "notes.txt").write_text("exported in May")
    read_scan(SERIES)


def slice_cut_off() -> None:
    files = write_series(Path(SERIES))
    files[2].write_bytes(files[2].read_bytes()[:-20])
    read_scan(SERIES)


def slice_copied_empty() -> None:
    files = write_series(Path(SERIES))
    files[2].write_bytes(b"")
    read_scan(SERIES)


def screenshots() -> None:
    Path(SERIES).mkdir()
    slice_dataset(stored_values()[0], SCREENSHOT).save_as(f"{SERIES}/a.dcm", enforce_file_format=True)
    read_scan(SERIES)


def path_out_of_zip() -> None:
    with zipfile.ZipFile("series.zip", "w") as archive:
        for path in write_series(Path(SERIES)):
            archive.write(path, f"../{path.name}")
    read_scan("series.zip")


def zip_in_zip() -> None:
    with zipfile.ZipFile("inner.zip", "w") as archive:
        for path in write_series(Path(SERIES)):
            archive.write(path, path.name)
    with zipfile.ZipFile("series.zip", "w") as archive:
        archive.write("inner.zip")
    read_scan("series.zip")


def lost_scaling(number: int, dataset: Dataset) -> None:
    if number != 2:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024


def wrong_high_bit() -> None:
    write_series(Path(SERIES), stored_values(dtype=np.uint16).clip(0, 4095), change=put(BitsStored=12, HighBit=15))
    read_scan(SERIES)


def decimal_comma(_: int, dataset: Dataset) -> None:
    tag = Tag("RescaleSlope")
    dataset[tag] = RawDataElement(tag, "DS", 4, b"1,0 ", 0, False, True)


def two_series() -> None:
    write_series(Path(SERIES))
    scout = put(0, SeriesInstanceUID="1.2.3.9", SeriesDescription="scout")
    write_series(Path(SERIES), stored_values((1, 4, 6)), change=scout, suffix=".scout.dcm")
    read_scan(SERIES)


DICOM = (
    BadInput("A folder without DICOM files", SERIES, empty_folder),
    BadInput("A slice that was not copied", SERIES, series_with(lambda number, _: number != 2)),
    BadInput("A slice that was cut off while copying", "I003.dcm", slice_cut_off),
    BadInput("A slice that was copied as an empty file", "I003.dcm", slice_copied_empty),
    BadInput("Two series in one folder", SERIES, two_series),
    BadInput("Several phases or echoes in one series", SERIES, series_with(move(1, (0, 0, -2.5)))),
    BadInput("Slices of two patients in one series", SERIES, series_with(put(1, PatientID="someone else"))),
    BadInput("Slices of two echoes in one series", SERIES,
             series_with(lambda number, dataset: setattr(dataset, "EchoTime", 2.3 if number % 2 else 4.6))),
    BadInput("A slice that lost its scaling", SERIES,
             series_with(lost_scaling)),
    BadInput("Numbers with a decimal comma", "I001.dcm", series_with(decimal_comma)),
    BadInput("A wrong HighBit", "I001.dcm", wrong_high_bit),
    BadInput("A tilted gantry", SERIES, series_with(tilt)),
    BadInput("A slice that was moved in its plane", SERIES, series_with(move(2, (3, 0, 0)))),
    BadInput("Slices of different pixel size", SERIES, series_with(put(1, PixelSpacing=[0.8, 1.25]))),
    BadInput("An anonymised slice without a position", "I003.dcm", series_with(put(2, ImagePositionPatient=None))),
    BadInput("A slice in colour", "I003.dcm",
             series_with(put(2, PhotometricInterpretation="RGB", SamplesPerPixel=3))),
    BadInput("Screenshots in place of the scan", SERIES, screenshots),
    BadInput("A zip within a zip", "inner.zip", zip_in_zip),
    BadInput("A zip that would write outside of its folder", "series.zip", path_out_of_zip),
)  # fmt: skip
