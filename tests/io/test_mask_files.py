"""Masks as other programs read them: place, values, type, and the names and colours of the classes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from tests.made.affines import affine_of
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask
from volseg.io.label_table import COLOURS, label_colour
from volseg.io.volumes import read_grid, read_mask, write_mask

SHAPE = (5, 4, 3)
LABELS = {"background": 0, "liver": 1, "left kidney": 2, "größe <&]]>": 7}
AFFINES = {
    "flipped": affine_of("LPI", (1.0, 1.0, 1.0)),
    "anisotropic, axes permuted": affine_of("SAR", (0.7, 1.3, 5.0)),
    "oblique": affine_of("RAS", (0.8, 0.9, 2.5), (20.0, -15.0, 40.0), (-123.4, 56.7, 1000.1)),
}
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha", ".mgz")
PAIRS = (
    *((".nii.gz", ".nii.gz"), (".nrrd", ".seg.nrrd"), (".nhdr", ".seg.nrrd"), (".nrrd", ".nrrd")),
    *((".seg.nrrd", ".seg.nrrd"), (".mha", ".mha"), (".mhd", ".mha")),
)
"""Endings of a scan and of its mask."""
TYPES = (
    *((255, ".nii.gz", np.uint8), (256, ".nii.gz", np.uint16), (65535, ".mha", np.uint16), (256, ".nrrd", np.uint16)),
    *((255, ".mgz", np.uint8), (600, ".mgz", np.int16), (40_000, ".mgz", np.int32)),
)
"""Largest label, ending of the mask, and the type of its voxels."""


def mask_on(affine: NDArray[np.float64]) -> Mask:
    labels = np.random.default_rng(0).choice(np.array([0, 1, 2, 7]), SHAPE)
    return Mask(labels, Grid(SHAPE, affine))


def read_foreign(path: Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Return the voxels (X, Y, Z) and the affine to RAS+ mm, as nibabel or SimpleITK reads them."""
    if path.suffix in (".mgz", ".gz", ".nii"):
        image = nibabel.load(path)
        return np.asanyarray(image.dataobj), np.asarray(image.affine, np.float64)
    image = SimpleITK.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, np.diag([-1.0, -1, 1, 1]) @ affine


def geometry(path: Path) -> tuple[object, ...]:
    image = SimpleITK.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_other_programs_find_every_voxel_where_it_was(ending: str, affine: NDArray[np.float64], tmp_path: Path) -> None:
    mask = mask_on(affine)
    write_mask(tmp_path / f"m{ending}", mask, labels=LABELS)
    voxels, found = read_foreign(tmp_path / f"m{ending}")
    assert np.array_equal(voxels, mask.labels)
    exact = ending in (".nrrd", ".seg.nrrd", ".mha")  # the others store float32
    np.testing.assert_allclose(found, affine, rtol=1e-15 if exact else 3e-7, atol=1e-12 if exact else 1e-4)
    again = read_mask(tmp_path / f"m{ending}")
    assert np.array_equal(again.labels, mask.labels)
    assert again.grid.same_as(mask.grid)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize(("scan", "ending"), PAIRS)
def test_a_mask_has_bitwise_the_geometry_of_a_scan_of_its_kind(
    scan: str, ending: str, affine: NDArray[np.float64], tmp_path: Path
) -> None:
    itk = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(itk[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.zeros(SHAPE[::-1], np.int16))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((itk[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(itk[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(tmp_path / f"scan{scan}"))
    labels = mask_on(affine).labels
    grid = read_grid(tmp_path / f"scan{scan}")
    write_mask(tmp_path / f"m{ending}", Mask(labels, grid), tmp_path / f"scan{scan}", LABELS)
    assert geometry(tmp_path / f"m{ending}") == geometry(tmp_path / f"scan{scan}")
    assert read_grid(tmp_path / f"m{ending}") == grid
    assert np.array_equal(read_foreign(tmp_path / f"m{ending}")[0], labels)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_an_mgz_mask_has_bitwise_the_geometry_of_its_scan(affine: NDArray[np.float64], tmp_path: Path) -> None:
    nibabel.save(nibabel.MGHImage(np.zeros(SHAPE, np.int16), affine), tmp_path / "scan.mgz")
    grid = read_grid(tmp_path / "scan.mgz")
    write_mask(tmp_path / "m.mgz", Mask(mask_on(affine).labels, grid), tmp_path / "scan.mgz")
    assert nibabel.load(tmp_path / "m.mgz").affine.tobytes() == nibabel.load(tmp_path / "scan.mgz").affine.tobytes()


def test_an_nrrd_scan_in_other_axes_of_the_patient(tmp_path: Path) -> None:
    """Directions and origin are copied together with the space that they are stated in."""
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 2 2\n"
        "space directions: (0.1,0,0) (0,-0.3,0) (0,0,2.5)\nkinds: domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (10.1,20,30)\n\n"
    )
    (tmp_path / "scan.nrrd").write_bytes(header.encode() + bytes(range(16)))
    grid = read_grid(tmp_path / "scan.nrrd")
    assert grid.affine[:3, 3].tolist() == [10.1, 20, 30]
    write_mask(tmp_path / "m.seg.nrrd", Mask(np.ones((2, 2, 2), np.uint8), grid), tmp_path / "scan.nrrd")
    assert geometry(tmp_path / "m.seg.nrrd") == geometry(tmp_path / "scan.nrrd")


@pytest.mark.parametrize(("largest", "ending", "expected"), TYPES)
def test_the_smallest_type_of_the_format_that_holds_the_labels(
    largest: int, ending: str, expected: type[np.generic], tmp_path: Path
) -> None:
    labels = np.zeros(SHAPE, np.int64)
    labels[1, 2, 0] = largest
    write_mask(tmp_path / f"m{ending}", Mask(labels, Grid(SHAPE, AFFINES["flipped"])))
    voxels, _ = read_foreign(tmp_path / f"m{ending}")
    assert voxels.dtype.newbyteorder("=") == expected  # MGH is big-endian
    assert np.array_equal(voxels, labels)


def test_names_and_colours_in_nifti(tmp_path: Path) -> None:
    """One extension with the table of labels in XML, as TotalSegmentator's ``load_multilabel_nifti`` reads it."""
    mask = mask_on(AFFINES["oblique"])
    for ending in (".nii.gz", ".nii"):
        write_mask(tmp_path / f"m{ending}", mask, labels=LABELS)
        image = nibabel.load(tmp_path / f"m{ending}")
        assert [extension.get_code() for extension in image.header.extensions] == [0]
        root = ElementTree.fromstring(image.header.extensions[0].get_content().rstrip(b"\0"))
        entries = root.findall("VolumeInformation/LabelTable/Label")
        assert {entry.text: int(entry.attrib["Key"]) for entry in entries} | {"background": 0} == LABELS
        colours = {int(e.attrib["Key"]): [float(e.attrib[c]) for c in ("Red", "Green", "Blue")] for e in entries}
        np.testing.assert_allclose(colours[7], label_colour(7), atol=1e-5)
        assert (image.header["vox_offset"] - 352) % 16 == 0
        voxels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / f"m{ending}"))).T
        assert np.array_equal(voxels, mask.labels)
    write_mask(tmp_path / "bare.nii", mask)
    assert len(nibabel.load(tmp_path / "bare.nii").header.extensions) == 0


def test_names_and_colours_in_a_segmentation_for_slicer(tmp_path: Path) -> None:
    mask = mask_on(AFFINES["oblique"])
    mask.labels[mask.labels == 2] = 0
    write_mask(tmp_path / "m.seg.nrrd", mask, labels=LABELS)
    image = SimpleITK.ReadImage(str(tmp_path / "m.seg.nrrd"))
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    names = [name for name in LABELS if name != "background"]
    assert [fields[f"Segment{number}_Name"] for number in range(3)] == names
    assert [fields[f"Segment{number}_LabelValue"] for number in range(3)] == ["1", "2", "7"]
    assert {fields[f"Segment{number}_Layer"] for number in range(3)} == {"0"}
    assert len({fields[f"Segment{number}_ID"] for number in range(3)}) == 3
    assert "Segment3_Name" not in fields
    red = [float(share) for share in fields["Segment0_Color"].split()]
    np.testing.assert_allclose(red, [0xFF / 255, 0x6B / 255, 0x6B / 255], atol=1e-5)
    places = np.argwhere(mask.labels == 7)
    extent = np.stack([places.min(axis=0), places.max(axis=0)], axis=1).ravel().tolist()
    assert [int(index) for index in fields["Segment2_Extent"].split()] == extent
    assert fields["Segment1_Extent"] == "0 -1 0 -1 0 -1"  # no voxel
    assert fields["Segmentation_MasterRepresentation"] == "Binary labelmap"


def test_every_label_value_has_a_colour_of_its_own() -> None:
    colours = [label_colour(value) for value in range(1, 200)]
    assert len(set(colours)) == len(colours)
    assert all(0 <= share <= 1 for colour in colours for share in colour)
    assert COLOURS[0] == "#ff6b6b"
