from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK

from volseg.errors import DataError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Volume
from volseg.io import volumes
from volseg.io.volumes import (
    check_image,
    count_channels,
    has_volume_suffix,
    read_channels,
    read_mask,
    read_volume,
    volume_stem,
)

GRID = Grid((4, 3, 2), np.diag([1.0, 1.0, 3.0, 1.0]))
RAMP = np.arange(24, dtype=np.int16).reshape(GRID.shape)


def save(path, data, affine=GRID.affine):
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


def test_channels_are_stacked_in_order(tmp_path) -> None:
    paths = [save(tmp_path / f"{c}.nii.gz", RAMP + 100 * c) for c in (2, 0, 1)]
    volume = read_channels(paths)
    assert volume.data.shape == (3, 4, 3, 2)
    assert volume.data[:, 0, 0, 0].tolist() == [200, 0, 100]
    assert volume.data.dtype == np.int16
    both = read_channels([save(tmp_path / "4d.nii.gz", np.stack([RAMP, -RAMP], -1)), paths[0]])
    assert both.data[:, 0, 0, 1].tolist() == [1, -1, 201]


def test_channels_on_different_grids_are_both_named(tmp_path) -> None:
    first = save(tmp_path / "t1.nii.gz", RAMP)
    moved = GRID.affine.copy()
    moved[0, 3] = 0.5
    second = save(tmp_path / "t2.nii.gz", RAMP, moved)
    with pytest.raises(DataError, match="different grids") as error:
        read_channels([first, second])
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


def test_channels_in_different_voxel_orders_are_brought_into_that_of_the_first(tmp_path) -> None:
    first = save(tmp_path / "t1.nii.gz", RAMP)
    image = nibabel.load(save(tmp_path / "a.nii.gz", -RAMP))
    turned = image.as_reoriented(nibabel.orientations.axcodes2ornt("PIL"))
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(turned.dataobj), turned.affine), tmp_path / "t2.nii.gz")
    both = read_channels([first, tmp_path / "t2.nii.gz"])
    np.testing.assert_array_equal(both.data[1], -both.data[0])
    assert both.grid.same_as(GRID)


@pytest.mark.parametrize("suffix", [".nii.gz", ".img", ".mgz", ".nrrd", ".mha"])
def test_the_header_tells_the_number_of_channels(tmp_path, suffix) -> None:
    for channels in (1, 3):
        path = tmp_path / f"{channels}{suffix}"
        data = np.stack([RAMP] * channels, -1) if channels > 1 else RAMP
        if suffix in (".nrrd", ".mha"):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(data, isVector=channels > 1), str(path))
        else:
            kind = nibabel.MGHImage if suffix == ".mgz" else nibabel.Nifti1Pair
            nibabel.save(kind(data, GRID.affine), path)
        assert count_channels(path) == len(read_volume(path).data) == channels


def test_no_files_are_no_case() -> None:
    with pytest.raises(DataError, match="without image files"):
        read_channels([])


def test_a_mask_of_whole_floats_is_a_mask(tmp_path) -> None:
    mask = read_mask(save(tmp_path / "a.nii.gz", (RAMP % 3).astype(np.float64)))
    assert mask.labels.dtype.kind == "i"
    np.testing.assert_array_equal(mask.labels, RAMP % 3)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "b.nii.gz", RAMP[..., None])).labels, RAMP)


@pytest.mark.parametrize("bad", [0.5, np.nan])
def test_a_mask_of_other_floats_is_refused(tmp_path, bad) -> None:
    data = RAMP.astype(np.float32)
    data[1, 1, 1] = bad
    with pytest.raises(DataError, match="not integers") as error:
        read_mask(save(tmp_path / "mask.nii.gz", data))
    assert f"found: {bad:g}\n" in str(error.value)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.float32, np.float64])
def test_labels_up_to_65535_are_read_as_they_are_and_larger_ones_refused(tmp_path, dtype) -> None:
    data = RAMP.astype(dtype)
    data[1, 1, 1] = 65_535
    path = tmp_path / "mask.nii.gz"
    save(path, data)
    np.testing.assert_array_equal(read_mask(path).labels, data)
    for bad in (65_536, 300_000_000) + ((np.inf, -np.inf, 1e300) if dtype == np.float64 else ()):
        data[1, 1, 1] = bad
        save(path, data)
        with pytest.raises(DataError, match=r"too large[\s\S]*at most 65535") as error:
            read_mask(path)
        assert str(path) in str(error.value)


def test_a_mask_with_channels_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="one channel"):
        read_mask(save(tmp_path / "mask.nii.gz", np.stack([RAMP, RAMP], -1)))


def test_a_good_image_passes() -> None:
    check_image(Volume(RAMP[None], GRID), ["scan"])
    check_image(Volume(np.array([0.0, 1.0]).reshape(1, 1, 1, 2), Grid((1, 1, 2), np.eye(4))), ["single slice"])


@pytest.mark.parametrize("slab", [1, 1 << 22])
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (-np.inf, "not finite"), (None, "same value")],
)
def test_an_image_that_shows_nothing_is_refused(monkeypatch, slab, value, message) -> None:
    monkeypatch.setattr(volumes, "SLAB_VOXELS", slab)
    data = np.stack([RAMP, RAMP]).astype(np.float32)
    if value is None:
        data[1] = 7
    else:
        data[1, 3, 2, 1] = value
    with pytest.raises(DataError, match=rf"{message}[\s\S]*channel 1") as error:
        check_image(Volume(data, GRID), ["scan.nii.gz"])
    assert "scan.nii.gz" in str(error.value)
    if value is not None and np.isnan(value):
        assert "NaN" in str(error.value)


def test_the_file_of_the_channel_at_fault_is_named() -> None:
    data = np.stack([RAMP, np.zeros_like(RAMP)])
    with pytest.raises(DataError, match=r"channel 1[\s\S]*t2\.nii"):
        check_image(Volume(data, GRID), ["t1.nii", "t2.nii"])
    with pytest.raises(DataError, match=r"channel 1[\s\S]*both\.nii"):
        check_image(Volume(data, GRID), ["both.nii"])


def test_names_and_suffixes() -> None:
    assert volume_stem("a/b/case.1.nii.gz") == "case.1"
    assert volume_stem("Case.NII.GZ") == "Case"
    assert volume_stem("x.mha") == "x"
    assert volume_stem("x.tar") == "x"
    assert has_volume_suffix("x.nii")
    assert has_volume_suffix("x.nrrd")
    assert not has_volume_suffix("._x.nii.gz")
    assert not has_volume_suffix("x.json")


@pytest.mark.data
def test_real_scans_as_they_are(data_root) -> None:
    chaos = read_volume(data_root / "CHAOS_MR/imagesTr/chaos_01.nii.gz")
    assert chaos.data.shape == (1, 256, 256, 37)
    assert chaos.data.dtype == np.int16
    assert chaos.grid.orientation == "LAS"
    assert chaos.grid.spacing_mm == pytest.approx((1.25, 1.25, 7.7), rel=1e-6)
    check_image(chaos, ["chaos_01"])
    ct = read_volume(data_root / "CT_example/ct_trunk_3mm.nii.gz")
    assert ct.data.dtype == np.int32
    assert ct.data.min() >= -2048
    labels = read_mask(data_root / "CT_example/ct_trunk_3mm_part_machine_labels.nii.gz")
    assert labels.grid.same_as(read_volume(data_root / "CT_example/ct_trunk_3mm_part.nii.gz").grid)
