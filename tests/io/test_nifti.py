"""What is in a file, and what volseg makes of it; nibabel and SimpleITK are the oracles."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tests.made.scan_files import write_scan
from volseg.errors import DataError, GeometryError, OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask
from volseg.io.remarks import collect
from volseg.io.volumes import read_grid, read_mask, read_volume, write_mask

SHAPE = (5, 4, 3)
LAS = np.array([[-1.25, 0, 0, 100.1], [0, 1.25, 0, -90.7], [0, 0, 7.7, 5.3], [0, 0, 0, 1]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (12, -25, 31), degrees=True).as_matrix() @ np.diag((0.7, -0.9, 3.3))
OBLIQUE[:3, 3] = (-33.3, 20.1, 1 / 3)
SHEARED = OBLIQUE.copy()
SHEARED[:3, 2] += (0.2, 0.1, 0.0)
RAMP = np.arange(60, dtype=np.int16).reshape(SHAPE)


def save(path: Path, data=RAMP, sform=None, qform=None, image=nibabel.Nifti1Image, unit="mm", codes=(1, 2)) -> Path:
    """Writes a scan whose header has the given sform and qform, and no other."""
    scan = image(data, None)
    scan.header.set_xyzt_units(unit)
    scan.header["pixdim"][4:] = (2.5, 0.0, 0.0, 7.0)  # as scanners' converters leave them
    scan.header["pixdim"][1:4] = (2.0, 3.0, 4.0) if sform is None else np.linalg.norm(sform[:3, :3], axis=0)
    if qform is not None:
        scan.header.set_qform(qform, code=codes[1], strip_shears=True)
    if sform is not None:
        scan.header.set_sform(sform, code=codes[0])
    nibabel.save(scan, path)
    return path


def big_endian(path: Path) -> Path:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    header.set_sform(LAS, code=1)
    nibabel.save(nibabel.Nifti1Image(RAMP, None, header), path)
    return path


def four_channels(path: Path) -> Path:
    return save(path, np.stack([RAMP + 100 * c for c in range(4)], axis=-1), sform=OBLIQUE, qform=OBLIQUE)


HEADERS = {
    "sform only": lambda path: save(path, sform=OBLIQUE),
    "qform only": lambda path: save(path, qform=OBLIQUE),
    "qform with positive qfac": lambda path: save(path, qform=np.diag([2.0, 3.0, 4.0, 1.0])),
    "neither": save,
    "both, different": lambda path: save(path, sform=LAS, qform=OBLIQUE),
    "sheared sform": lambda path: save(path, sform=SHEARED, qform=SHEARED, codes=(4, 3)),
    "NIfTI-2": lambda path: save(path, sform=OBLIQUE, qform=LAS, image=nibabel.Nifti2Image),
    "big-endian": big_endian,
    "metres": lambda path: save(path, sform=LAS / np.array([1000, 1000, 1000, 1])[:, None], unit="meter"),
    "microns": lambda path: save(path, qform=np.diag([700.0, 700.0, 3000.0, 1.0]), unit="micron"),
    "no unit": lambda path: save(path, sform=LAS, unit="unknown"),
    "four channels": four_channels,
    "single slice": lambda path: save(path, RAMP[:, :, :1], sform=OBLIQUE),
}
GEOMETRY = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
GEOMETRY = (*GEOMETRY, "srow_x", "srow_y", "srow_z")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", HEADERS)
def test_a_written_mask_has_the_geometry_of_its_source_to_the_bit(tmp_path, kind, suffix) -> None:
    source = HEADERS[kind](tmp_path / f"scan{suffix}")
    grid = read_grid(source)
    labels = np.random.default_rng(0).integers(0, 4, grid.shape)
    write_mask(tmp_path / f"mask{suffix}", Mask(labels, grid), source)

    theirs, ours = nibabel.load(source), nibabel.load(tmp_path / f"mask{suffix}")
    assert ours.affine.tobytes() == theirs.affine.tobytes()
    for name in GEOMETRY:
        assert np.array_equal(ours.header[name], theirs.header[name]), name
    assert ours.header["pixdim"].tolist() == theirs.header["pixdim"].tolist()
    assert ours.header.get_xyzt_units() == theirs.header.get_xyzt_units()
    assert type(ours) is type(theirs)
    assert ours.shape == theirs.shape[:3]
    assert ours.get_data_dtype() == np.uint8
    assert (ours.dataobj.slope, ours.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(ours.dataobj, labels)
    assert read_mask(tmp_path / f"mask{suffix}").grid == grid


@pytest.mark.parametrize("kind", HEADERS)
def test_grids_are_those_of_nibabel_in_mm(tmp_path, kind) -> None:
    source = HEADERS[kind](tmp_path / "scan.nii.gz")
    volume = read_volume(source)
    expected = nibabel.load(source).affine.copy()
    expected[:3] *= {"metres": 1000, "microns": 0.001}.get(kind, 1)
    np.testing.assert_array_equal(volume.grid.affine, expected)
    assert volume.grid == read_grid(source)
    assert volume.data.shape == (4 if kind == "four channels" else 1, *volume.grid.shape)
    np.testing.assert_array_equal(volume.data[0], RAMP[:, :, : volume.grid.shape[2]])
    if kind == "four channels":
        np.testing.assert_array_equal(volume.data[3], RAMP + 300)


@pytest.mark.parametrize("kind", ["sform only", "qform only", "microns", "single slice"])
def test_simpleitk_reads_our_mask_where_it_reads_the_scan(tmp_path, kind) -> None:
    source = HEADERS[kind](tmp_path / "scan.nii.gz")
    grid = read_grid(source)
    write_mask(tmp_path / "mask.nii.gz", Mask(np.ones(grid.shape, np.uint8), grid), source)
    theirs, ours = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("scan.nii.gz", "mask.nii.gz"))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(ours, get)() == getattr(theirs, get)()
    last = [n - 1 for n in grid.shape]
    lps_mm = np.array(theirs.TransformIndexToPhysicalPoint(last))
    np.testing.assert_allclose(lps_mm * (-1, -1, 1), grid.to_mm(last), atol=1e-3)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2", ">f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_unscaled_values_keep_their_type(tmp_path, dtype, suffix) -> None:
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    nibabel.save(nibabel.Nifti1Image(RAMP.astype(dtype), LAS, header), tmp_path / f"scan{suffix}")
    data = read_volume(tmp_path / f"scan{suffix}").data
    assert data.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(data[0], RAMP)


@pytest.mark.parametrize(("stored", "expected"), [("u1", "f4"), ("i2", "f4"), ("f4", "f4"), ("i4", "f8"), ("f8", "f8")])
def test_scaled_values_become_floats(tmp_path, stored, expected) -> None:
    scan = nibabel.Nifti1Image(RAMP.astype(stored), LAS)
    header = scan.header
    header.set_data_dtype(stored)
    header.set_slope_inter(0.5, -1024)
    raw = header.copy()
    raw["scl_slope"], raw["scl_inter"], raw["vox_offset"], raw["magic"] = 0.5, -1024, 352, b"n+1"
    content = raw.binaryblock + b"\0\0\0\0" + RAMP.astype(stored).tobytes(order="F")
    (tmp_path / "scan.nii").write_bytes(content)
    data = read_volume(tmp_path / "scan.nii").data
    assert data.dtype == np.dtype(expected)
    np.testing.assert_array_equal(data[0], RAMP * 0.5 - 1024)

    grid = read_grid(tmp_path / "scan.nii")
    write_mask(tmp_path / "mask.nii", Mask(RAMP, grid), tmp_path / "scan.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii").labels, RAMP)


def test_reading_a_mapped_file_leaves_it_alone(tmp_path) -> None:
    path = save(tmp_path / "scan.nii", sform=LAS)
    before = path.read_bytes()
    path.chmod(0o444)
    volume = read_volume(path)
    volume.data[0, 0, 0, 0] = 99
    assert path.read_bytes() == before


def test_a_mask_without_source_has_the_grid_rounded_to_float32(tmp_path) -> None:
    for name, affine in (("a.nii.gz", OBLIQUE), ("b.nii.gz", SHEARED), ("c.nii", LAS)):
        write_mask(tmp_path / name, Mask(RAMP, Grid(SHAPE, affine)))
        image = nibabel.load(tmp_path / name)
        np.testing.assert_array_equal(image.affine, affine.astype(np.float32))
        assert image.header.get_xyzt_units()[0] == "mm"
        assert int(image.header["qform_code"]) == (0 if affine is SHEARED else 1)
        assert read_mask(tmp_path / name).grid.same_as(Grid(SHAPE, affine), 1e-4)


@settings(deadline=None, max_examples=20)
@given(
    st.tuples(*[st.floats(-180, 180)] * 3), st.tuples(*[st.floats(0.1, 10)] * 3), st.tuples(*[st.floats(-500, 500)] * 3)
)
def test_any_affine_survives_a_copy(tmp_path_factory, angles, spacing, origin) -> None:
    folder = tmp_path_factory.getbasetemp()
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = origin
    for source in (save(folder / "q.nii", qform=affine), save(folder / "s.nii", sform=affine)):
        write_mask(folder / "m.nii", Mask(RAMP, read_grid(source)), source)
        assert nibabel.load(folder / "m.nii").affine.tobytes() == nibabel.load(source).affine.tobytes()


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 1, "u1"),
        (0, 255, "u1"),
        (0, 256, "u2"),
        (0, 65535, "u2"),
        (0, 65536, "i4"),
        (-1, 3, "i2"),
        (-40000, 0, "i4"),
    ],
)
def test_the_smallest_type_that_holds_the_labels(tmp_path, low, high, dtype) -> None:
    labels = np.zeros(SHAPE, np.int64)
    labels[0, 0, :2] = low, high
    write_mask(tmp_path / "mask.nii.gz", Mask(labels, Grid(SHAPE, LAS)))
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert written.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(written.dataobj, labels)


def test_labels_beyond_32_bits_are_refused(tmp_path) -> None:
    with pytest.raises(OutputError, match="32 bits"):
        write_mask(tmp_path / "mask.nii.gz", Mask(np.full(SHAPE, 1 << 31), Grid(SHAPE, LAS)))


def test_what_describes_the_scan_is_not_copied(tmp_path) -> None:
    scan = nibabel.Nifti1Image(RAMP, LAS)
    scan.header["descrip"], scan.header["cal_max"] = b"a patient", 900
    scan.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nibabel.save(scan, tmp_path / "scan.nii")
    write_mask(tmp_path / "mask.nii", Mask(RAMP, read_grid(tmp_path / "scan.nii")), tmp_path / "scan.nii")
    content = (tmp_path / "mask.nii").read_bytes()
    assert b"Jane Doe" not in content
    assert b"a patient" not in content
    assert nibabel.load(tmp_path / "mask.nii").header["cal_max"] == 0


def test_the_same_mask_gives_the_same_bytes(tmp_path) -> None:
    mask = Mask(RAMP, Grid(SHAPE, LAS))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, mask)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_names_with_spaces_and_letters_of_all_kinds(tmp_path) -> None:
    source = save(tmp_path / "Müller scan 影像.nii.gz", sform=LAS)
    target = tmp_path / "neuer Ordner ß" / "maske é.nii.gz"
    write_mask(target, Mask(RAMP, read_grid(source)), source)
    np.testing.assert_array_equal(read_mask(target).labels, RAMP)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "mask.nii.gz"
    write_mask(path, Mask(RAMP, Grid(SHAPE, LAS)))
    before = path.read_bytes()

    write, written = gzip.GzipFile.write, []

    def write_header_only(archive, data) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(len(data))
        return write(archive, data)

    monkeypatch.setattr(gzip.GzipFile, "write", write_header_only)
    with pytest.raises(OutputError, match="No space left") as error:
        write_mask(path, Mask(RAMP + 1, Grid(SHAPE, LAS)))
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["mask.nii.gz"]


def test_a_place_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder.nii.gz").mkdir()
    for path in (tmp_path / "file" / "mask.nii.gz", tmp_path / "folder.nii.gz"):
        with pytest.raises(OutputError, match="cannot be written") as error:
            write_mask(path, Mask(RAMP, Grid(SHAPE, LAS)))
        assert str(path) in str(error.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.nii.gz"]
    with pytest.raises(OutputError, match=r"format is not written(.|\n)*\.nii\.gz"):
        write_mask(tmp_path / "mask.png", Mask(RAMP, Grid(SHAPE, LAS)))


def test_a_mask_off_the_grid_of_its_scan_is_refused(tmp_path) -> None:
    source = save(tmp_path / "scan.nii.gz", sform=LAS)
    with pytest.raises(GeometryError, match="not on the grid") as error:
        write_mask(tmp_path / "mask.nii.gz", Mask(RAMP, Grid(SHAPE, OBLIQUE)), source)
    assert "scan.nii.gz" in str(error.value)
    assert not (tmp_path / "mask.nii.gz").exists()


# --- files that cannot be used ---


def truncated(path: Path, share: float, suffix: str) -> Path:
    whole = save(path.with_name(f"whole{suffix}"), np.random.default_rng(0).integers(0, 999, SHAPE).astype("i2"))
    content = whole.read_bytes()
    path = path.with_name(f"scan{suffix}")
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.75, 0.9, 0.99])
def test_a_truncated_file_is_a_data_error(tmp_path, suffix, share) -> None:
    path = truncated(tmp_path / "x", share, suffix)
    with pytest.raises(DataError) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert "hint" in str(error.value)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_a_flipped_bit_in_an_archive_is_a_data_error(tmp_path, where) -> None:
    data = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype("i2")
    path = save(tmp_path / "scan.nii.gz", data)
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(DataError, match="corrupt"):
        read_volume(path)


def test_a_wrong_checksum_is_a_data_error(tmp_path) -> None:
    path = save(tmp_path / "scan.nii.gz")
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="corrupt"):
        read_volume(path)


def with_affine(path: Path, affine) -> Path:
    scan = nibabel.Nifti1Image(RAMP, LAS)
    nibabel.save(scan, path)
    header = nibabel.load(path).header.copy()
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = affine[row]
    path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])
    return path


def plain(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def array(path: Path, data) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, LAS), path)
    return path


NEGATIVE = "pixdim[1,2,3] should be positive; setting to abs of pixdim values"
RGB = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
BROKEN = {
    "missing": (lambda f: f / "scan.nii.gz", "does not exist"),
    "empty": (lambda f: plain(f / "scan.nii", b""), "0 bytes"),
    "empty archive": (lambda f: plain(f / "scan.nii.gz", b""), "0 bytes"),
    "text": (lambda f: plain(f / "scan.nii", b"hello " * 200), "not NIfTI"),
    "text in an archive": (lambda f: plain(f / "scan.nii.gz", gzip.compress(b"hello " * 200)), "not NIfTI"),
    "not compressed": (lambda f: save(f / "a.nii").rename(f / "scan.nii.gz"), "not compressed"),
    "compressed": (lambda f: save(f / "a.nii.gz").rename(f / "scan.nii"), "is compressed"),
    "2D": (lambda f: array(f / "scan.nii.gz", RAMP[:, :, 0]), r"2D[\s\S]*\(5, 4\)"),
    "5D": (lambda f: array(f / "scan.nii.gz", np.zeros((5, 4, 3, 2, 2), np.int16)), "5D"),
    "colours": (lambda f: array(f / "scan.nii.gz", RGB), "plain numbers"),
    "complex": (lambda f: array(f / "scan.nii.gz", RAMP.astype(np.complex64)), "plain numbers"),
    "NaN affine": (lambda f: with_affine(f / "scan.nii", np.full((3, 4), np.nan)), "affine"),
    "zero affine": (lambda f: with_affine(f / "scan.nii", np.zeros((3, 4))), "affine"),
    "picture": (lambda f: plain(f / "scan.png", b"\x89PNG"), "format"),
    "no DICOM": (lambda f: plain(f / "scan.dcm", b"x"), "no DICOM object"),
    "folder": (lambda f: f, "no DICOM series"),
    "no suffix": (lambda f: plain(f / "scan", b"x"), "no suffix"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unusable_file_is_named_with_what_is_wrong(tmp_path, kind) -> None:
    make, message = BROKEN[kind]
    path = make(tmp_path)
    for read in (read_volume, read_mask):
        with pytest.raises(DataError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)
    if kind not in ("colours", "complex"):
        with pytest.raises(DataError, match=message):
            read_grid(path)


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_corrected_in_a_header_is_reported_with_its_file(tmp_path, capfd, caplog, whole) -> None:
    """Nibabel's own lines name no file."""
    path = write_scan(tmp_path / "scan.nii", RAMP, LAS, pixdim={2: -2.0})
    if whole:
        read_volume(path)
    assert read_grid(path).spacing_mm == pytest.approx(Grid(RAMP.shape, LAS).spacing_mm)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"{path}: a field of the header is invalid, and was corrected: {NEGATIVE}"] * whole
    assert capfd.readouterr().err == ""
    with collect() as findings:
        read_volume(path)
    assert [(one.kind, one.files, one.message) for one in findings] == [("header-field", (path,), NEGATIVE)]


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch) -> None:
    path = save(tmp_path / "scan.nii.gz")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match="reading the file is not permitted") as error:
        read_volume(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)])
def test_units_other_than_mm_are_converted_with_a_note(unit: str, mm: float, tmp_path: Path) -> None:
    affine = np.diag([0.002, 0.003, 0.004, 1.0])
    path = save(tmp_path / "scan.nii.gz", sform=affine, unit=unit)
    with collect() as findings:
        spacing = read_volume(path).grid.spacing_mm
    np.testing.assert_allclose(spacing, np.array([0.002, 0.003, 0.004]) * mm, rtol=1e-6)
    assert [one.kind for one in findings] == ["unit"] * (mm != 1)


def test_voxels_of_metres_were_meant_in_mm(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", sform=LAS, unit="meter")
    with pytest.raises(DataError, match=r"unit of lengths(.|\n)*xyzt_units: metre(.|\n)*write 2 into xyzt_units"):
        read_grid(path)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 0)])
def test_a_header_without_directions_is_reported(codes: tuple[int, int], tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", sform=LAS, qform=LAS, codes=codes)
    with collect() as findings:
        assert read_volume(path).grid.orientation == "LAS"
    assert [one.kind for one in findings] == ["no-directions"] * (codes == (0, 0))


@pytest.mark.parametrize("axes", [(1,), (1, 1), (1, 1, 1, 1), (2,), (1, 2)])
def test_axes_of_length_one_do_not_count(axes: tuple[int, ...], tmp_path: Path) -> None:
    """ITK writes channels as the fifth axis."""
    data = np.arange(60 * max(axes), dtype=np.int16).reshape(*SHAPE, *axes)
    volume = read_volume(save(tmp_path / "scan.nii.gz", data, sform=LAS))
    np.testing.assert_array_equal(volume.data, np.moveaxis(data.reshape(*SHAPE, -1), -1, 0))
