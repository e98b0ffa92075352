"""DICOM files that are no even stack of gray slices: each is refused with the file and the numbers that are wrong."""

from __future__ import annotations

import random
import stat
import warnings
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from tests.made.dicom_files import (
    SCREENSHOT,
    Change,
    compressed,
    jpeg_codestream,
    move,
    put,
    slice_dataset,
    stored_values,
    tilt,
    write_enhanced,
    write_series,
)
from volseg.errors import DataError, VolsegError
from volseg.io.remarks import collect
from volseg.io.volumes import read_grid, read_volume

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def two_phases(number: int, dataset: Dataset) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, float(z) - 2.5 * (number % 2)]
    dataset.TemporalPositionIdentifier = number % 2 + 1


def every_second(**tags: object) -> Change:
    """Return a change of tags of slices 1 and 3."""

    def change(number: int, dataset: Dataset) -> None:
        if number % 2:
            put(**tags)(number, dataset)

    return change


def some_scaled(number: int, dataset: Dataset) -> None:
    if number != 2:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024


def header_only(number: int, dataset: Dataset) -> None:
    if number == 2:
        del dataset.PixelData


def floats(number: int, dataset: Dataset) -> None:
    del dataset.PixelData
    dataset.FloatPixelData = bytes(4 * 24)


WRONG: dict[str, tuple[Change, str]] = {
    "a tilted gantry": (tilt, r"tilted gantry[\s\S]*12\.00 degrees"),
    "a missing slice": (
        lambda number, dataset: number != 2,
        r"missing[\s\S]*1 of 3 dist[\s\S]*5 mm between \(-30\.00, 20\.00, 12\.50\)[\s\S]*I004[\s\S]*I002[\s\S]*2\.5 mm",
    ),
    "uneven spacing": (move(4, (0, 0, 0.4)), r"unevenly spaced[\s\S]*2\.9 mm between[\s\S]*within 5%"),
    "a slice shifted in its plane": (move(2, (3, 0, 0)), r"shifted within their plane[\s\S]*3 mm \(I003"),
    "two slices at one position": (
        move(1, (0, 0, -2.5)),
        r"same position[\s\S]*5 slices at 4 positions; several at 1 of them[\s\S]*I00[45].dcm, I00[45].dcm",
    ),
    "two phases": (
        two_phases,
        r"5 slices at 3 positions; several at 2 of them[\s\S]*TemporalPositionIdentifier [12], [12]",
    ),
    "two patients": (
        every_second(PatientID="someone else"),
        r"different patients \(PatientID\)[\s\S]*3 slices: made, such as I00[135][\s\S]*2 slices: someone else, such",
    ),
    "two studies": (
        every_second(StudyInstanceUID="1.2.9"),
        r"different studies[\s\S]*3 slices: 1\.2\.3, [\s\S]*1\.2\.9,",
    ),
    "two frames of reference": (put(1, FrameOfReferenceUID="1.2.9"), r"different frames of reference[\s\S]*1\.2\.9"),
    "two modalities": (
        put(4, Modality="PT"),
        r"different modalities[\s\S]*1 slice: PT, such as I001[\s\S]*4 slices: CT",
    ),
    "two echoes": (
        lambda number, dataset: setattr(dataset, "EchoTime", 2.3 if number % 2 else 4.6),
        r"different echo times \(EchoTime\)[\s\S]*3 slices: 4\.6, such as I00[135][\s\S]*2 slices: 2\.3",
    ),
    "two units": (
        lambda number, dataset: setattr(dataset, "Units", "CNTS" if number == 3 else "BQML"),
        r"different units of the values \(Units\)[\s\S]*1 slice: CNTS, such as I002",
    ),
    "a scaling in some slices": (
        some_scaled,
        r"no RescaleIntercept[\s\S]*1 of 5 slices without it, such as I003\.dcm; -1024 in I00[1245]\.dcm",
    ),
    "a slope in some slices": (
        lambda number, dataset: setattr(dataset, "RescaleSlope", 2) if number else None,
        r"no RescaleSlope[\s\S]*1 of 5 slices without it, such as I005\.dcm; 2 in",
    ),
    "another size": (
        put(3, Rows=2, Columns=3),
        r"different sizes[\s\S]*4 slices: 4, 6[\s\S]*1 slice: 2, 3, such as I002",
    ),
    "another spacing": (put(1, PixelSpacing=[0.8, 1.25]), r"different pixel spacings[\s\S]*0\.8, 1\.25, such as I004"),
    "another orientation": (
        put(0, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        r"different orientations[\s\S]*4 slices: 1, 0, 0, 0, 1, 0, such as I001",
    ),
    "no position": (put(2, ImagePositionPatient=None), r"ImagePositionPatient is missing[\s\S]*I003"),
    "no orientation": (put(2, ImageOrientationPatient=None), r"ImageOrientationPatient is missing[\s\S]*I003"),
    "no spacing": (put(2, PixelSpacing=None), "PixelSpacing is missing"),
    "no rows": (put(2, Rows=None), "Rows is missing"),
    "a spacing of 0": (put(PixelSpacing=[0, 1]), r"PixelSpacing is not valid[\s\S]*positive"),
    "a position of two numbers": (put(1, ImagePositionPatient=[1, 2]), "ImagePositionPatient is not valid"),
    "directions that are not perpendicular": (
        put(ImageOrientationPatient=[1, 0, 0, 0.5, 0.8, 0]),
        "ImageOrientationPatient is not valid",
    ),
    "a slope of 0": (put(4, RescaleSlope=0), r"RescaleSlope is not valid[\s\S]*I001"),
    "colour": (put(2, PhotometricInterpretation="RGB", SamplesPerPixel=3), r"colour[\s\S]*I003[\s\S]*RGB, 3 values"),
    "a palette": (put(2, PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR"),
    "a header without pixels": (header_only, r"no pixel data[\s\S]*I003"),
    "floating-point pixels": (floats, r"not whole numbers[\s\S]*7FE0,0008"),
    "12 bits allocated": (put(BitsAllocated=12, BitsStored=12, HighBit=11), "BitsAllocated 12"),
    "more pixels than bytes": (
        put(1, Rows=60000, Columns=60000),
        r"truncated[\s\S]*I004[\s\S]*48 bytes[\s\S]*7200000000",
    ),
    "frames without positions": (put(NumberOfFrames=3), r"no positions[\s\S]*3 frames and 0"),
    "two series": (
        put(4, SeriesInstanceUID="1.9.9", SeriesDescription="scout"),
        r"several series[\s\S]*2:[\s\S]*1\.2\.3\.4: CT, \"a made series\", 4 slices, 1\.25 x 0\.75 x 2\.5 mm, such as"
        r"[\s\S]*1\.9\.9: CT, \"scout\", 1 slice[\s\S]*give a file of the series",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_stack_of_slices_is_refused_with_numbers(kind: str, tmp_path: Path) -> None:
    change, message = WRONG[kind]
    write_series(tmp_path / "series", change=change)
    for read in (read_volume, read_grid):
        with pytest.raises(DataError, match=message) as error:
            read(tmp_path / "series")
        assert str(tmp_path / "series") in str(error.value)


def test_within_the_tolerances_a_series_is_read(tmp_path: Path) -> None:
    rounded = [10.0, 12.52, 14.98, 17.5, 20.0]
    write_series(tmp_path, change=lambda n, d: setattr(d, "ImagePositionPatient", [-30.05, 20, rounded[n]]))
    assert read_volume(tmp_path).grid.spacing_mm == pytest.approx((1.25, 0.75, 2.5))


def uid_of_each_file(number: int, dataset: Dataset) -> None:
    dataset.FrameOfReferenceUID = dataset.StudyInstanceUID = f"1.9.{number}"


ALIKE: dict[str, Change] = {
    "acquisitions": lambda number, dataset: setattr(dataset, "AcquisitionNumber", number // 2),
    "echo times that are rounded": lambda number, dataset: setattr(dataset, "EchoTime", 2.46 + 0.001 * number),
    "slices without a patient": every_second(PatientID=""),
    "slices without a study": put(1, StudyInstanceUID=None),
    "UIDs anonymised file by file": uid_of_each_file,
    "a scaling that changes nothing in some slices": every_second(RescaleSlope=1, RescaleIntercept=0),
    "names with spaces": every_second(PatientID="made "),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_slices_of_one_scan_may_differ(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = stored_values()
    write_series(tmp_path, stored, change=ALIKE[kind])
    assert np.array_equal(read_volume(tmp_path).data[0], stored.T)
    assert caplog.messages == []


def every_other(**tags: float) -> Change:
    """Return a change of tags that leaves out every second slice; they are numbered in the order of the scan."""

    def change(number: int, dataset: Dataset) -> bool:
        put(**{"InstanceNumber": number + 1, "SliceThickness": None, **tags})(number, dataset)
        return number % 2 == 0

    return change


def thin(number: int, dataset: Dataset) -> None:
    dataset.InstanceNumber, dataset.SliceThickness = 9 - number, 1.25


GAPS: dict[str, tuple[Change, str | None]] = {
    "stated distance": (
        every_other(SpacingBetweenSlices=2.5),
        "slices 5 mm apart; SpacingBetweenSlices: 2.5 mm; InstanceNumber: 1, 3, 5",
    ),
    "stated against the normal": (every_other(SpacingBetweenSlices=-2.5), "SpacingBetweenSlices: 2.5 mm"),
    "thickness and holes in the numbers": (
        every_other(SliceThickness=2.5),
        "slices 5 mm apart; SliceThickness: 2.5 mm; InstanceNumber: 1, 3, 5",
    ),
    "no multiple of the thickness": (every_other(SliceThickness=1.5), None),
    "missing numbers": (put(SliceThickness=1.25, InstanceNumber=None), "SliceThickness: 1.25 mm; InstanceNumber: none"),
    "thin slices with gaps": (thin, None),
    "the right distance": (put(SpacingBetweenSlices=2.5, SliceThickness=1.25), None),
    "overlap": (put(SliceThickness=5), None),
}


@pytest.mark.parametrize("kind", GAPS)
def test_distances_that_are_multiples_of_what_is_stated_are_reported(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, message = GAPS[kind]
    write_series(tmp_path, change=change)
    with collect() as findings:
        read_volume(tmp_path)
    assert [one.kind for one in findings] == ["slice-gap"] * (message is not None)
    assert message is None or message in findings[0].message
    read_grid(tmp_path)
    assert caplog.messages == []


@pytest.mark.parametrize("uid", ["1.2.3.4", "1.9.9"])
def test_a_file_chooses_its_series(uid: str, tmp_path: Path) -> None:
    stored = stored_values()
    first = write_series(tmp_path, stored, suffix="a")
    other = write_series(tmp_path, stored + 1, change=put(SeriesInstanceUID="1.9.9"), suffix="b")
    with pytest.raises(DataError, match="several series"):
        read_volume(tmp_path)
    expected = stored if uid == "1.2.3.4" else stored + 1
    assert np.array_equal(read_volume((first if uid == "1.2.3.4" else other)[1]).data[0], expected.T)


def test_a_single_slice_of_unknown_thickness(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((1, 4, 6)), change=put(SliceThickness=None))
    with pytest.raises(DataError, match="single slice of unknown thickness"):
        read_volume(tmp_path)


def test_folders_without_a_series(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no DICOM series"):
        read_volume(tmp_path / "empty")
    (tmp_path / "report").mkdir()
    slice_dataset(stored_values()[0], SCREENSHOT).save_as(tmp_path / "report" / "a.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=r"no series[\s\S]*a\.dcm \(Secondary Capture Image Storage\)"):
        read_volume(tmp_path / "report")


def test_archives_in_a_folder_without_a_series_are_named(tmp_path: Path) -> None:
    (tmp_path / "slices.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no DICOM series[\s\S]*another archive in it: slices\.tar\.gz"):
        read_volume(tmp_path)
    slice_dataset(stored_values()[0], SCREENSHOT).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=r"no series[\s\S]*a\.dcm \(Sec[\s\S]*not DICOM: slices\.tar\.gz"):
        read_volume(tmp_path)


@pytest.mark.parametrize("kept", [0, 60, 400, -1])
def test_a_file_cut_off_is_named(kept: int, tmp_path: Path) -> None:
    files = write_series(tmp_path)
    files[-1].write_bytes(files[-1].read_bytes()[:kept])
    with pytest.raises(DataError, match=r"I001\.dcm"):
        read_volume(tmp_path)


def test_an_empty_file_without_an_ending_is_no_bystander(tmp_path: Path) -> None:
    write_series(tmp_path, suffix="")
    (tmp_path / "I000").touch()
    with pytest.raises(DataError, match=r"empty[\s\S]*I000"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("uid", "name"), [("1.2.840.10008.1.2.4.100", "MPEG2"), ("1.2.840.10008.1.2.1.99", "Deflated")]
)
def test_an_unsupported_transfer_syntax_is_named(uid: str, name: str, tmp_path: Path) -> None:
    for path in write_series(tmp_path):
        content = path.read_bytes()
        old = b"1.2.840.10008.1.2.1\0"
        new = uid.encode() + b"\0" * (len(uid) % 2)
        length = content.index(old) - 2
        path.write_bytes(
            content[:140]  # the group's length stands there
            + (int.from_bytes(content[140:144], "little") + len(new) - len(old)).to_bytes(4, "little")
            + content[144:length]
            + len(new).to_bytes(2, "little")
            + new
            + content[length + 2 + len(old) :]
        )
    with pytest.raises(DataError, match=rf"transfer syntax[\s\S]*{name}"):
        read_volume(tmp_path)


def test_compressed_files_that_claim_too_much(tmp_path: Path) -> None:
    def claim(number: int, dataset: Dataset) -> None:
        compressed(dataset, "RLE", tmp_path)
        dataset.Rows = dataset.Columns = 60000

    write_series(tmp_path / "series", change=claim)
    with pytest.raises(DataError, match=r"claims more pixels[\s\S]*36 GB"):
        read_volume(tmp_path / "series")


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_a_codestream_of_another_size_is_not_decoded(compressor: str, tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate

    syntax, frame = jpeg_codestream(stored_values((1, 20, 30))[0], compressor, tmp_path)

    def swap(number: int, dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID, dataset.PixelData = syntax, encapsulate([frame])

    write_series(tmp_path / "series", change=swap)
    with pytest.raises(DataError, match="20 rows and 30 columns, not 4 and 6"):
        read_volume(tmp_path / "series")


def test_frames_that_are_missing_are_counted(tmp_path: Path) -> None:
    def cut(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[-1]

    file = write_enhanced(tmp_path / "e.dcm", stored_values(), change=cut)
    with pytest.raises(DataError, match="5 frames and 4 descriptions"):
        read_volume(file)


def with_entry(folder: Path, name: str, mode: int = 0) -> Path:
    files = write_series(folder / "series")
    path = folder / "scan.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, b"x")
    return path


def encrypted(folder: Path) -> Path:
    path = with_entry(folder, "a")
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(magic)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(magic, at + 1)
    path.write_bytes(content)
    return path


def bomb(folder: Path) -> Path:
    path = folder / "scan.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.dcm", "w") as entry,
    ):
        for _ in range(70):
            entry.write(bytes(1 << 20))
    return path


def damaged(folder: Path) -> Path:
    path = with_entry(folder, "a")
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    return path


def doubled(folder: Path) -> Path:
    """Several entries of one name, as some programs pack the slices of several folders."""
    files = write_series(folder / "series", stored_values())
    with zipfile.ZipFile(folder / "scan.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zipfile
        for file in files:
            archive.write(file, "slice.dcm")
    return folder / "scan.zip"


ZIPS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a name with ..": (lambda f: with_entry(f, "a/../../b"), r"leads out of its folder[\s\S]*a/\.\./\.\./b"),
    "an absolute name": (lambda f: with_entry(f, "/etc/b"), "leads out of its folder"),
    "a drive": (lambda f: with_entry(f, "C:\\b"), "leads out of its folder"),
    "a link": (lambda f: with_entry(f, "b", stat.S_IFLNK | 0o777), "holds a link"),
    "encrypted": (encrypted, "encrypted"),
    "a bomb": (bomb, r"unpack to too much[\s\S]*73\.4 MB"),
    "one name twice": (doubled, r"several files of one name[\s\S]*slice\.dcm"),
    "damaged": (damaged, r"scan\.zip: I00"),
    "no zip": (lambda f: (f / "scan.zip").write_bytes(b"x" * 99) and f / "scan.zip", "BadZipFile"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_zips_that_are_not_safe_or_damaged(kind: str, tmp_path: Path) -> None:
    make, message = ZIPS[kind]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_are_an_error_or_a_volume_but_nothing_else(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The damage is that of ``benchmarks/fuzz.py``."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    mutant, rng = import_module("trials.dicom_bytes").mutant, random.Random(seed)
    files = write_series(tmp_path / "series", stored_values((3, 4, 6)))
    victim = rng.choice(files)
    victim.write_bytes(mutant(victim.read_bytes(), rng))
    errors = []
    try:
        volume = read_volume(tmp_path / "series")
        assert volume.data.dtype in (np.int16, np.float32)
    except VolsegError as error:
        errors.append(str(error))
    assert all(str(tmp_path / "series") in error for error in errors)
