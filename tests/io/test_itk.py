"""NRRD and MetaImage: the voxels and the grid that ITK's own NIfTI writer gives, and damaged files as errors."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.made.affines import affine_of
from volseg.errors import DataError, OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask
from volseg.io.itk import segment_values
from volseg.io.remarks import collect
from volseg.io.volumes import files_of, read_grid, read_mask, read_volume, volume_stem, write_mask

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


def oblique_image(dtype: type[np.generic] = np.int16) -> SimpleITK.Image:
    values = np.random.default_rng(0).integers(0, 200, (5, 4, 3)).astype(dtype)
    image = SimpleITK.GetImageFromArray(values)
    turn = SimpleITK.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5)
    image.SetDirection(turn.GetMatrix())
    image.SetSpacing((0.7, 1.3, 2.5))
    image.SetOrigin((11.0, -5.0, 3.0))
    return image


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_voxels_in_the_same_place_as_in_nifti(suffix: str, compressed: bool, tmp_path: Path) -> None:
    image = oblique_image()
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii.gz"))
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"), useCompression=compressed)
    expected, found = read_volume(tmp_path / "a.nii.gz"), read_volume(tmp_path / f"a{suffix}")
    assert found.data.dtype == np.int16
    assert np.array_equal(found.data, expected.data)
    assert found.grid.same_as(expected.grid, tolerance_mm=1e-4)  # NIfTI stores float32
    assert read_grid(tmp_path / f"a{suffix}").same_as(found.grid, tolerance_mm=0)


def test_the_axes_of_the_patient_by_hand(tmp_path: Path) -> None:
    """ITK's x grows to the left and y to the back; ours grow to the right and to the front."""
    image = SimpleITK.Image([2, 3, 4], SimpleITK.sitkUInt8)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    image[1, 2, 3] = 7
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.data[0, 1, 2, 3] == 7
    assert volume.grid.affine.tolist() == [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]]
    assert volume.grid.orientation == "LPS"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_several_values_per_voxel_and_a_fourth_axis_are_channels(suffix: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(5, 4, 3, 2)).astype(np.float32)  # z, y, x, channel
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values, isVector=True), str(tmp_path / f"vector{suffix}"))
    series = SimpleITK.GetImageFromArray(np.moveaxis(values, -1, 0), isVector=False)
    SimpleITK.WriteImage(series, str(tmp_path / f"series{suffix}"))
    for name in ("vector", "series"):
        volume = read_volume(tmp_path / f"{name}{suffix}")
        assert np.array_equal(volume.data, np.transpose(values, (3, 2, 1, 0)))
        assert volume.grid.shape == (3, 4, 5)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".seg.nrrd"])
def test_masks_come_back(suffix: str, tmp_path: Path) -> None:
    grid = Grid((3, 4, 5), affine_of("PIR", (0.5, 1.5, 4.0), (10, 20, 30)))
    labels = np.random.default_rng(2).integers(0, 700, grid.shape)
    write_mask(tmp_path / f"a{suffix}", Mask(labels, grid))
    mask = read_mask(tmp_path / f"a{suffix}")
    assert np.array_equal(mask.labels, labels)
    assert mask.labels.dtype == np.uint16
    assert mask.grid.same_as(grid, tolerance_mm=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]
    oracle = SimpleITK.ReadImage(str(tmp_path / f"a{suffix}"))
    corner = oracle.TransformIndexToPhysicalPoint((2, 0, 4))
    assert np.allclose(np.array(corner) * (-1, -1, 1), grid.to_mm((2, 0, 4)))


def test_masks_that_these_formats_cannot_hold(tmp_path: Path) -> None:
    sheared = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for name, affine, problem in (("a.nrrd", sheared, "no shear"), ("a.mhd", np.eye(4), "one file")):
        with pytest.raises(OutputError, match=problem):
            write_mask(tmp_path / name, Mask(np.zeros((2, 2, 2), np.uint8), Grid((2, 2, 2), affine)))
    assert list(tmp_path.iterdir()) == []


def test_names() -> None:
    assert [volume_stem(name) for name in ("a.b.nrrd", "a.seg.nrrd", "a.MHA")] == ["a.b", "a", "a"]


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
    "space directions: (1,0,0) (0,1,0) (0,0,{z})\nkinds: domain domain domain\nendian: little\nencoding: {encoding}\n"
    "space origin: (0,0,0)\n{more}\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = {sizes}\n"
    "ElementType = MET_SHORT\nElementDataFile = {data}\n"
)


def nrrd(sizes: str = "2 2 2", z: str = "1", encoding: str = "raw", more: str = "", voxels: bytes = b"x" * 16) -> bytes:
    return NRRD.format(sizes=sizes, z=z, encoding=encoding, more=more).encode() + voxels


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.nrrd", b"", "truncated, corrupt or of another kind"),
        ("a.nrrd", b"\x89PNG", "truncated, corrupt or of another kind"),
        ("a.nrrd", nrrd(voxels=b"x" * 7), "truncated|corrupt"),
        ("a.nrrd", nrrd("100000 100000 100"), "shorter than its header says"),
        ("a.nrrd", nrrd("100000 100000 100", encoding="gzip"), "shorter than its header says"),
        ("a.nrrd", nrrd(z="0"), "no usable affine|truncated, corrupt"),
        ("a.nrrd", nrrd(z="nan"), "no usable affine|truncated, corrupt"),
        ("a.nhdr", nrrd(more="data file: ../secret.raw\n"), "voxels of the file lie elsewhere"),
        ("a.nhdr", nrrd(more="data file: gone.raw\n"), "does not exist"),
        ("a.mha", META.format(sizes="100000 100000 100", data="LOCAL").encode() + b"x" * 16, "shorter than its"),
        ("a.mhd", META.format(sizes="2 2 2", data="/etc/hostname").encode(), "voxels of the file lie elsewhere"),
        ("a.mhd", META.format(sizes="2 2 2", data="a_%03d.raw 1 2 1").encode(), "voxels of the file lie elsewhere"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        read_volume(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)


def test_bytes_cut_off_or_changed_are_errors_or_voxels(tmp_path: Path) -> None:
    """No other exception, and never another shape."""
    rng = np.random.default_rng(3)
    for suffix in (".nrrd", ".mha"):
        SimpleITK.WriteImage(oblique_image(), str(tmp_path / f"a{suffix}"), useCompression=True)
        whole = (tmp_path / f"a{suffix}").read_bytes()
        for _ in range(60):
            content = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.3 else whole)
            for position in rng.integers(0, len(content), rng.integers(1, 4)):
                content[position] = rng.integers(256)
            (tmp_path / f"b{suffix}").write_bytes(content)
            with suppress(DataError):
                volume = read_volume(tmp_path / f"b{suffix}")
                assert volume.data.shape[1:] == volume.grid.shape


@pytest.mark.parametrize("extra", [b"labels:" + b' "x"' * 2000, b"space directions: (3,0,0)" + b" 1" * 2000])
def test_nrrd_fields_that_the_library_would_not_survive(extra: bytes, tmp_path: Path) -> None:
    SimpleITK.WriteImage(oblique_image(), str(tmp_path / "a.nrrd"))
    whole = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(whole.replace(b"\n\n", b"\n" + extra + b"\n\n", 1))
    with pytest.raises(DataError, match=r"a line of the header is too long(.|\n)*a\.nrrd"):
        read_volume(tmp_path / "a.nrrd")


def test_long_values_of_nrrd_that_3d_slicer_writes_are_read(tmp_path: Path) -> None:
    image = oblique_image()
    image.SetMetaData("Segmentation_ConversionParameters", "x" * 5000)
    for number in range(300):
        image.SetMetaData(f"Segment{number}_Tags", f"{number:03d}" * 100)
    SimpleITK.WriteImage(image, str(tmp_path / "a.seg.nrrd"))
    assert (tmp_path / "a.seg.nrrd").stat().st_size > 90_000
    assert read_volume(tmp_path / "a.seg.nrrd").data.shape == (1, 3, 4, 5)


@pytest.mark.parametrize("axes", ["1000", "-1", "1e300", "99999999999", "", "0"])
def test_numbers_of_axes_that_the_library_would_not_survive(axes: str, tmp_path: Path) -> None:
    SimpleITK.WriteImage(oblique_image(), str(tmp_path / "a.mha"))
    whole = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(whole.replace(b"NDims = 3", f"NDims = {axes}".encode()))
    with pytest.raises(DataError, match=r"NDims(.|\n)*a\.mha"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed-time", "right-posterior-superior"])
def test_spaces_that_are_not_those_of_the_patient_are_refused(space: str, tmp_path: Path) -> None:
    """ITK takes them as LPS."""
    content = nrrd().replace(b"left-posterior-superior", space.encode())
    with pytest.raises(DataError, match=rf"space: {space}[\s\S]*expected: left-posterior-superior") as caught:
        read_grid(written(tmp_path / "a.nrrd", content))
    assert caught.value.file == str(tmp_path / "a.nrrd")


@pytest.mark.parametrize(("space", "orientation"), [("LPS", "LPS"), ("right-anterior-superior", "RAS"), ("las", "LAS")])
def test_spaces_of_the_patient(space: str, orientation: str, tmp_path: Path) -> None:
    content = nrrd().replace(b"left-posterior-superior", space.encode())
    assert read_grid(written(tmp_path / "a.nrrd", content)).orientation == orientation


UNITS = {
    '"um" "um" "um"': 1e-3,
    '"µm" "microns" "Micrometers"': 1e-3,
    '"cm" "cm" "cm"': 10,
    '"m" "meters" "metre"': 1000,
    '"mm" "mm" "mm"': 1,
    '"" "" ""': 1,
    '"pixel" "pixel" "pixel"': 1,
}


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("field", ["space units", "units"])  # the second is for files without a space
def test_units_of_nrrd_are_converted_and_kept_by_masks(field: str, units: str, tmp_path: Path) -> None:
    content, mm = nrrd(more=f"{field}: {units}\n"), UNITS[units]
    for line in ("space:", "space directions:", "kinds:", "space origin:") if field == "units" else ():
        content = re.sub(rb"^" + line.encode() + rb".*\n", b"", content, flags=re.MULTILINE)
    content = content.replace(b"endian:", b"spacings: 1 1 1\nendian:") if field == "units" else content
    path = written(tmp_path / "a.nrrd", content.replace(b"(0,0,0)", b"(1,2,3)"))
    grid = read_grid(path)
    assert grid.affine[:3, :3].tolist() == np.diag([-mm, -mm, mm]).tolist()
    assert grid.affine[:3, 3].tolist() == ([-mm, -2 * mm, 3 * mm] if field == "space units" else [0, 0, 0])
    with collect() as findings:
        read_volume(path)
    assert [one.kind for one in findings if one.kind != "no-directions"] == ["unit"] * (mm != 1)
    for suffix in (".nrrd", ".mha"):
        write_mask(tmp_path / f"mask{suffix}", Mask(np.ones((2, 2, 2), np.uint8), grid), source=path)
        assert read_mask(tmp_path / f"mask{suffix}").grid == grid
        image = SimpleITK.ReadImage(str(tmp_path / f"mask{suffix}"))  # which ignores units, those of the scan, too
        assert image.GetSpacing() == (1, 1, 1)


@pytest.mark.parametrize("units", ['"mm" "mm" "cm"', '"furlong" "furlong" "furlong"', '"um" "um" ""', '"Hz" "mm" "mm"'])
def test_units_that_are_not_known_or_differ_are_refused(units: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unit of lengths[\s\S]*a\.nrrd[\s\S]*space units: ") as caught:
        read_volume(written(tmp_path / "a.nrrd", nrrd(more=f"space units: {units}\n")))
    assert units.split('"')[1] in str(caught.value)


@pytest.mark.parametrize(("unit", "mm"), [("um", 1e-3), ("cm", 10), ("mm", 1), ("?", 1)])
def test_units_of_metaimage(unit: str, mm: float, tmp_path: Path) -> None:
    header = META.format(sizes="2 2 2", data="LOCAL").replace(
        "ElementSpacing", f"DistanceUnits = {unit}\nElementSpacing"
    )
    path = written(tmp_path / "a.mha", header.encode() + b"x" * 16)
    grid = read_grid(path)
    assert grid.spacing_mm == (mm, mm, mm)
    write_mask(tmp_path / "mask.mha", Mask(np.ones((2, 2, 2), np.uint8), grid), source=path)
    assert read_grid(tmp_path / "mask.mha") == grid


@pytest.mark.parametrize(
    ("name", "removed", "text"),
    [
        ("a.nrrd", b"space: left-posterior-superior\n", "no space in the header"),
        ("a.mha", b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "no TransformMatrix in the header"),
        ("a.mha", b"", None),
        ("a.nrrd", b"", None),
    ],
)
def test_directions_that_are_not_stated_are_reported(
    name: str, removed: bytes, text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = nrrd() if name == "a.nrrd" else META.format(sizes="2 2 2", data="LOCAL").encode() + b"x" * 16
    assert removed in whole
    changed = whole.replace(removed, b"space dimension: 3\n" if name == "a.nrrd" else b"") if removed else whole
    path = written(tmp_path / name, changed)
    assert read_volume(path).grid.orientation == "LPS"
    title, taken = "the header does not state the directions of the axes", "left, posterior, superior, as by ITK"
    assert caplog.messages == ([] if text is None else [f"{path}: {title}: {text}; taken as {taken}"])


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_letters_of_all_kinds_in_the_name_of_the_file_of_the_voxels(suffix: str, tmp_path: Path) -> None:
    image = oblique_image()
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    header, voxels = tmp_path / f"a{suffix}", (tmp_path / "a.raw").rename(tmp_path / "größe 臓器.raw")
    header.write_bytes(header.read_bytes().replace(b"a.raw", voxels.name.encode()))
    assert np.array_equal(read_volume(header).data[0], SimpleITK.GetArrayFromImage(image).T)
    assert files_of(header) == sorted([header, voxels])


def test_names_of_segments(tmp_path: Path) -> None:
    image = oblique_image(np.uint8)
    for number, (name, value) in enumerate([("liver", "2"), ("left kidney", "1"), ("broken", "x")]):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", value)
    for name in ("a.seg.nrrd", "a.nrrd"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    assert segment_values(tmp_path / "a.seg.nrrd") == {"liver": 2, "left kidney": 1}
    assert segment_values(tmp_path / "a.nrrd") == {}


def test_negative_voxel_sizes(tmp_path: Path) -> None:
    SimpleITK.WriteImage(oblique_image(), str(tmp_path / "a.mha"))
    whole = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(whole.replace(b"ElementSpacing = ", b"ElementSpacing = -"))
    with pytest.raises(DataError, match=r"are negative(.|\n)*a\.mha"):
        read_volume(tmp_path / "a.mha")
