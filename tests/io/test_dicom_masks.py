"""DICOM Segmentation objects and RT Structure Sets, as highdicom, rt-utils and pydicom read them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from scipy import ndimage

from tests.made.dicom_files import PLANES, write_series
from volseg.errors import DataError, GeometryError, MissingExtraError, OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.ops import reorient
from volseg.geometry.volume import Mask
from volseg.io import dicom_rtstruct
from volseg.io.dicom_codes import FINDINGS, OTHER_NAMES, STRUCTURES, class_codes
from volseg.io.volumes import read_grid, read_mask, write_mask

highdicom = pytest.importorskip("highdicom")
rt_utils = pytest.importorskip("rt_utils", exc_type=ImportError)

LABELS = {"background": 0, "liver": 205, "größe\\2": 2, "Left Kidney": 7, "tumour": 9}
ENDINGS = (".seg.dcm", ".rtstruct.dcm")


def patient(_: int, dataset: Dataset) -> None:
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Jörg"
    dataset.PatientBirthDate, dataset.StudyID, dataset.SeriesNumber = "19700101", "42", 3


@pytest.fixture
def series(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 99, (5, 14, 17)).astype(np.int16)
    write_series(tmp_path / "series", pixels, plane="oblique", change=patient)
    return tmp_path / "series"


def labels_on(shape: tuple[int, ...], values: tuple[int, ...] = (205, 2, 7)) -> NDArray[np.int64]:
    """Structures with holes, of single voxels, at the border and in contact; the last slice is empty."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (1.5, 1.5, 0))
    labels = np.zeros(shape, np.int64)
    labels[smooth > 0.05] = values[0]
    labels[smooth < -0.12] = values[1]
    labels[rng.random(shape) > 0.98] = values[2]
    labels[:, :, -1] = 0
    return labels


def write(path: Path, series: Path, labels: NDArray[np.int64] | None = None) -> Mask:
    grid = read_grid(series)
    mask = Mask(labels_on(grid.shape) if labels is None else labels, grid)
    write_mask(path, mask, series, LABELS)
    return mask


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_masks_come_back_on_the_voxels_of_their_series(ending: str, plane: str, tmp_path: Path) -> None:
    pixels = np.zeros((5, 19, 23), np.int16)
    write_series(tmp_path / "series", pixels + np.arange(5, dtype=np.int16)[:, None, None], plane=plane)
    mask = write(tmp_path / f"m{ending}", tmp_path / "series")
    again = read_mask(tmp_path / f"m{ending}")
    assert again.grid == mask.grid == read_grid(tmp_path / f"m{ending}")
    assert np.array_equal(again.labels, mask.labels)
    assert len(np.unique(again.labels)) == 4


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_mask_in_another_order_of_the_voxels_is_brought_into_that_of_the_series(
    ending: str, series: Path, tmp_path: Path
) -> None:
    grid = read_grid(series)
    labels = labels_on(grid.shape)
    (other,), turned = reorient(labels[None], grid, "RAS")
    assert not turned.same_as(grid)
    write_mask(tmp_path / f"m{ending}", Mask(other, turned), series, LABELS)
    assert np.array_equal(read_mask(tmp_path / f"m{ending}").labels, labels)


def test_highdicom_finds_every_segment_where_it_was(series: Path, tmp_path: Path) -> None:
    mask = write(tmp_path / "m.seg.dcm", series)
    segmentation = highdicom.seg.segread(tmp_path / "m.seg.dcm")
    segments = {segment.SegmentLabel: segment for segment in segmentation.SegmentSequence}
    assert list(segments) == ["liver", "größe/2", "Left Kidney"]  # the tumour has no voxels
    for number, value in enumerate((205, 2, 7), start=1):
        volume = segmentation.get_volume(combine_segments=True, segment_numbers=[number], relabel=False)
        lps_to_ras = np.diag([-1.0, -1, 1, 1])
        found = Grid(volume.spatial_shape, lps_to_ras @ volume.affine)
        places = found.to_mm(np.argwhere(volume.array == number))
        index = (places - mask.grid.affine[:3, 3]) @ np.linalg.inv(mask.grid.affine[:3, :3]).T
        assert np.abs(index - np.rint(index)).max() < 1e-3
        inside = np.zeros(mask.grid.shape, bool)
        inside[tuple(np.rint(index).astype(int).T)] = True
        assert np.array_equal(inside, mask.labels == value)
    colour = highdicom.color.CIELabColor.from_dicom_value(segments["Left Kidney"].RecommendedDisplayCIELabValue)
    np.testing.assert_allclose(colour.to_rgb(), [0x22, 0xD3, 0xC5], atol=3)
    kidney = segments["Left Kidney"].SegmentedPropertyTypeCodeSequence[0]
    assert (kidney.CodeValue, kidney.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    unknown = segments["größe/2"].SegmentedPropertyTypeCodeSequence[0]
    assert (unknown.CodeValue, unknown.CodingSchemeDesignator, unknown.CodeMeaning) == ("2", "99VOLSEG", "größe/2")


@pytest.mark.parametrize("plane", PLANES)
def test_rt_utils_fills_the_same_voxels(plane: str, tmp_path: Path) -> None:
    """Square slices and pixels only: rt-utils mixes up rows and columns of others."""
    pixels = np.random.default_rng(0).integers(0, 99, (4, 24, 24)).astype(np.int16)
    write_series(tmp_path / "series", pixels, plane=plane, spacing_mm=(0.8, 0.8))
    mask = write(tmp_path / "m.rtstruct.dcm", tmp_path / "series")
    structures = rt_utils.RTStructBuilder.create_from(str(tmp_path / "series"), str(tmp_path / "m.rtstruct.dcm"))
    assert structures.get_roi_names() == ["liver", "größe/2", "Left Kidney"]
    for name, value in zip(structures.get_roi_names(), (205, 2, 7), strict=True):
        filled = structures.get_roi_mask_by_name(name)  # (rows, columns, slices)
        assert np.array_equal(filled.transpose(1, 0, 2), mask.labels == value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_patient_study_and_slices_are_those_of_the_series(ending: str, series: Path, tmp_path: Path) -> None:
    write(tmp_path / f"m{ending}", series)
    written, source = dcmread(tmp_path / f"m{ending}"), dcmread(next(series.iterdir()))
    for name in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyID"):
        assert written[name].value == source[name].value, name
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert written.SeriesNumber in (301, 302)
    text = str(written)
    slices = [dcmread(path).SOPInstanceUID for path in series.iterdir()]
    assert sum(uid in text for uid in slices) >= len(slices) - 1  # a segmentation leaves out slices without voxels
    assert source.FrameOfReferenceUID in text


@pytest.mark.parametrize("tag", ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_series_that_nothing_can_refer_to(ending: str, tag: str, tmp_path: Path) -> None:
    write_series(tmp_path / "series", change=lambda _, dataset: delattr(dataset, tag))
    with pytest.raises(OutputError, match=rf"needs the tag {tag}(.|\n)*series(.|\n)*add the tag to all slices"):
        write(tmp_path / f"mask{ending}", tmp_path / "series")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_mask_without_voxels(ending: str, series: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="volseg")
    write(tmp_path / f"m{ending}", series, np.zeros(read_grid(series).shape, np.int64))
    assert "no voxels, hence no s" in caplog.text
    assert "Left Kidney, tumour" in caplog.text
    again = read_mask(tmp_path / f"m{ending}")
    assert not again.labels.any()
    assert again.grid == read_grid(series)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_no_series_is_refused_with_a_hint(ending: str, series: Path, tmp_path: Path) -> None:
    grid = read_grid(series)
    mask = Mask(labels_on(grid.shape), grid)
    write_mask(tmp_path / "scan.nii.gz", mask)
    for source in (None, tmp_path / "scan.nii.gz"):
        with pytest.raises(OutputError, match=r"needs the series(.|\n)*choose another format"):
            write_mask(tmp_path / f"m{ending}", mask, source, LABELS)
    smaller = Mask(mask.labels[:, :, 1:], Grid((*grid.shape[:2], grid.shape[2] - 1), grid.affine))
    with pytest.raises(GeometryError, match="not on the grid"):
        write_mask(tmp_path / f"m{ending}", smaller, series, LABELS)
    assert not (tmp_path / f"m{ending}").exists()


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_that_volseg_did_not_write_or_that_are_damaged(ending: str, series: Path, tmp_path: Path) -> None:
    path = tmp_path / f"m{ending}"
    path.write_bytes(next(series.iterdir()).read_bytes())
    with pytest.raises(DataError, match=r"only if volseg wrote them(.|\n)*convert it"):
        read_mask(path)
    write(path, series)
    content = path.read_bytes()
    other = tmp_path / f"n{ENDINGS[1 - ENDINGS.index(ending)]}"
    other.write_bytes(content)
    with pytest.raises(DataError, match="another kind"):
        read_mask(other)
    for size in (*range(0, len(content), len(content) // 25), *range(len(content) - 30, len(content), 7)):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="truncated"):
            read_mask(path)


@pytest.mark.parametrize(
    ("module", "ending", "setting"),
    [("highdicom", ".seg.dcm", "--format dicom-seg"), ("rt_utils", ".rtstruct.dcm", "--format rtstruct")],
)
def test_the_error_without_the_library_names_the_extra(
    module: str, ending: str, setting: str, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{setting}(.|\n)*volseg\[dicom\]"):
        write(tmp_path / f"m{ending}", series)


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("liver", "10200004", None),
        ("kidneys", "64033007", None),
        ("kidney_right", "64033007", "24028007"),
        ("Left Lung", "39607008", "7771000"),
        ("left ventricle", "87878005", None),
        ("Urinary-Bladder", "89837001", None),
        ("tumour", "108369006", None),
        ("anterior", "5", None),
        ("left and right", "5", None),
    ],
)
def test_codes_by_name(name: str, code: str, side: str | None) -> None:
    found = class_codes(name, 5)
    assert (found.kind.value, found.side and found.side.value) == (code, side)
    assert found.kind.scheme_designator == ("99VOLSEG" if code == "5" else "SCT")


def test_every_code_is_in_the_dictionary_of_pydicom() -> None:
    keywords = {*STRUCTURES, *FINDINGS, *OTHER_NAMES.values()}
    assert keywords <= set(dir(codes.SCT))
    assert set(OTHER_NAMES.values()) <= {*STRUCTURES, *FINDINGS}


def test_outlines_are_exact_for_readers_that_fill_the_voxels_whose_centre_is_inside() -> None:
    """Random planes, which have single voxels, holes, holes in holes and diagonal contacts."""
    rng = np.random.default_rng(1)
    for share in (0.02, 0.3, 0.5, 0.8, 1.0):
        plane = rng.random((17, 11)) < share
        found = np.zeros_like(plane)
        for polygon in dicom_rtstruct.outlines(plane):
            assert len(polygon) >= 4
            found ^= dicom_rtstruct.filled(polygon, plane.shape)
        assert np.array_equal(found, plane)
