"""Data sets written as nnU-Net v2 raw: the same voxels, by nnU-Net's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.made.datasets import save_nifti
from tests.made.layouts import AFFINE, LAYOUTS, made_dataset
from volseg import api
from volseg.cli.main import main
from volseg.errors import DataError, OutputError
from volseg.io.datasets import Dataset, read_dataset
from volseg.io.volumes import read_channels, read_grid, read_mask, read_volume


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return made_dataset(tmp_path / "source")


def written(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "dataset.json").read_text()))


def test_the_same_voxels_and_consecutive_values(dataset: Dataset, tmp_path: Path, capsys) -> None:
    source, out = LAYOUTS["decathlon"](dataset, tmp_path / "in"), tmp_path / "Dataset001_Made"
    assert main(["convert", str(source), str(out)]) == 0
    assert f"3 cases with and 0 without labels in {out}" in capsys.readouterr().out
    assert written(out) == {
        "name": "Made",
        "channel_names": {"0": "T2w", "1": "FLAIR"},
        "labels": {"background": 0, "core": 1, "edge": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    copy = read_dataset(out)
    assert [case.id for case in copy.cases] == [case.id for case in dataset.cases]
    for old, new in zip(dataset.cases, copy.cases, strict=True):
        assert [path.name for path in new.images] == [f"{old.id}_0000.nii.gz", f"{old.id}_0001.nii.gz"]
        assert [a.read_bytes() == b.read_bytes() for a, b in zip(old.images, new.images, strict=True)] == [True] * 2
        before, after = read_mask(old.label), read_mask(new.label)
        assert np.array_equal(after.labels, np.searchsorted([0, 5, 7], before.labels))
        assert after.grid.same_as(before.grid, tolerance_mm=1e-5)


def test_what_cannot_be_copied_is_rewritten(tmp_path: Path) -> None:
    """A 4D file, floats, a label in another voxel order, an uncompressed file."""
    rng = np.random.default_rng(0)
    images, label = rng.normal(0, 1, (6, 5, 4, 2)), rng.integers(0, 3, (6, 5, 4)).astype(np.uint8)
    turned = AFFINE @ np.diag([-1.0, 1, 1, 1])
    turned[:3, 3] = AFFINE @ [5, 0, 0, 1] @ np.eye(4)[:, :3]
    save_nifti(tmp_path / "in/images/a.nii.gz", images, AFFINE)
    save_nifti(tmp_path / "in/labels/a.nii", label[::-1], turned)
    copy = api.convert(tmp_path / "in", tmp_path / "out").cases[0]
    volume = read_channels(copy.images)
    assert volume.data.dtype == np.float64
    assert np.array_equal(volume.data, np.moveaxis(images, -1, 0))
    assert np.array_equal(read_mask(copy.label).labels, label)
    assert read_grid(copy.label).same_as(volume.grid, tolerance_mm=1e-5)
    assert written(tmp_path / "out")["channel_names"] == {"0": "MRI", "1": "MRI"}


@pytest.mark.parametrize("odd", ["micron", "no directions", "fourth axis"])
def test_files_that_programs_read_differently_are_rewritten(odd: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, data in (("images", rng.normal(0, 1, (6, 5, 4))), ("labels", rng.integers(0, 3, (6, 5, 4)))):
        path = save_nifti(tmp_path / f"in/{name}/a.nii.gz", data.astype(np.uint8 if name == "labels" else np.float32))
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj)
        copy = nibabel.Nifti1Image(voxels[..., None] if odd == "fourth axis" else voxels, AFFINE)
        copy.header.set_xyzt_units("micron" if odd == "micron" else "mm")
        for set_form in (copy.set_sform, copy.set_qform) if odd == "no directions" else ():
            set_form(None, 0)
        nibabel.save(copy, path)
    copied = api.convert(tmp_path / "in", tmp_path / "out", workers=0).cases[0]
    before = read_channels([tmp_path / "in/images/a.nii.gz"])
    for path in (*copied.images, copied.label):
        header = nibabel.load(path).header
        assert (header.get_data_shape(), header.get_xyzt_units()[0]) == ((6, 5, 4), "mm")
        assert header["sform_code"] > 0
        assert read_grid(path).same_as(before.grid, tolerance_mm=1e-5)
    assert np.array_equal(read_channels(copied.images).data, before.data)


def test_unknown_channels_are_named_by_their_values(tmp_path: Path) -> None:
    air = np.full((8, 8, 8), -1000, np.int16)
    air[2:6] = 40
    save_nifti(tmp_path / "in/images/a.nii.gz", air)
    label = save_nifti(tmp_path / "in/labels/a.nii.gz", (air > 0).astype(np.uint8))
    api.convert(tmp_path / "in", tmp_path / "out", workers=0)
    assert written(tmp_path / "out")["channel_names"] == {"0": "CT"}
    assert (tmp_path / "out/labelsTr/a.nii.gz").read_bytes() == label.read_bytes()


@pytest.mark.parametrize(
    ("labels", "order", "expected", "expected_order"),
    [
        (
            {"whole": [1, 2, 4], "core": [2, 4], "tip": 4},
            None,
            {"whole": [1, 2, 3], "core": [2, 3], "tip": 3},
            [1, 2, 3],
        ),
        ({"tip": 4, "whole": [1, 2, 4]}, [4, 2], {"tip": 3, "whole": [1, 2, 3]}, [3, 2]),
        ({"tip": 2, "both": [1, 2], "stem": 1}, None, {"both": [1, 2], "stem": 1, "tip": 2}, [1, 1, 2]),
        ({"organ": 9, "ignore": 3}, None, {"organ": 1, "ignore": 2}, None),
    ],
)
def test_regions_and_the_ignore_label(tmp_path: Path, labels, order, expected, expected_order) -> None:
    values = sorted({value for group in labels.values() for value in (group if isinstance(group, list) else [group])})
    label = np.array([0, *values], np.uint8).reshape(-1, 1, 1)
    save_nifti(tmp_path / "in/images/a.nii.gz", np.arange(len(label), dtype=np.int16).reshape(-1, 1, 1))
    save_nifti(tmp_path / "in/labels/a.nii.gz", label)
    content = {"labels": {"background": 0, **labels}, "regions_class_order": order, "modality": "MRI"}
    (tmp_path / "in/dataset.json").write_text(json.dumps(content))
    copy = api.convert(tmp_path / "in", tmp_path / "out")
    assert written(tmp_path / "out")["labels"] == {"background": 0, **expected}
    assert written(tmp_path / "out").get("regions_class_order") == expected_order
    new, old = read_mask(copy.cases[0].label).labels, read_dataset(tmp_path / "in", trainable=False).label_map
    for name, group in copy.label_map.classes.items():
        assert np.array_equal(np.isin(new, group), np.isin(label, old.classes[name]))


def test_scans_without_labels_go_to_images_ts(dataset: Dataset, tmp_path: Path) -> None:
    root = LAYOUTS["case_folders"](dataset, tmp_path / "in")
    next((root / "c").glob("*seg*")).unlink()
    assert [case.id for case in api.convert(root, tmp_path / "out").unlabelled] == ["c"]
    assert sorted(path.name for path in (tmp_path / "out/imagesTs").iterdir()) == ["c_0000.nii.gz", "c_0001.nii.gz"]
    assert written(tmp_path / "out")["numTraining"] == 2


def test_all_invalid_cases_are_named_and_nothing_is_written(dataset: Dataset, tmp_path: Path) -> None:
    root = LAYOUTS["nnunet"](dataset, tmp_path / "in")
    for name in ("a_1", "c"):
        (root / f"labelsTr/{name}.nii.gz").unlink()
        save_nifti(root / f"labelsTr/{name}.nii.gz", np.full((2, 2, 2), 3, np.uint8))
    with pytest.raises(DataError, match=r"2 of 3 cases(.|\n)*a_1(.|\n)*- c"):
        api.convert(root, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "source"]


def test_nothing_is_replaced(dataset: Dataset, tmp_path: Path) -> None:
    root = LAYOUTS["nnunet"](dataset, tmp_path / "in")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for out in (root, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(OutputError):
            api.convert(root, out)
    (tmp_path / "empty").mkdir()
    assert len(api.convert(root, tmp_path / "empty").cases) == 3


def shifted_channel(tmp_path: Path) -> Path:
    """A linear ramp, and the same ramp on a coarser grid that is turned by a quarter."""
    ramp = np.fromfunction(lambda i, j, k: 10 * i + 3 * j + k, (8, 8, 8)).astype(np.float32)
    quarter = np.array([[0.0, -2, 0, 7], [2, 0, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (5, 5, 8)), np.ones(1), indexing="ij"), -1)[..., 0, :]
    x, y, z = np.moveaxis(index @ quarter.T, -1, 0)[:3]
    save_nifti(tmp_path / "in/images/a_0000.nii.gz", ramp)
    save_nifti(tmp_path / "in/images/a_0001.nii.gz", (10 * x + 3 * y + z).astype(np.float32), quarter)
    save_nifti(tmp_path / "in/labels/a.nii.gz", (ramp > 30).astype(np.uint8))
    return tmp_path / "in"


def test_channels_on_other_grids_are_resampled_on_request(tmp_path: Path) -> None:
    root = shifted_channel(tmp_path)
    with pytest.raises(DataError, match=r"different grids(.|\n)*--resample-channels"):
        api.convert(root, tmp_path / "out")
    assert main(["convert", str(root), str(tmp_path / "out"), "--resample-channels"]) == 0
    first, second = (read_volume(path) for path in read_dataset(tmp_path / "out").cases[0].images)
    assert second.grid.same_as(first.grid)
    inside = (slice(None), slice(0, 8), slice(0, 7), slice(None))
    np.testing.assert_allclose(second.data[inside], first.data[inside], atol=1e-4)


def test_a_name_of_a_background(dataset: Dataset, tmp_path: Path) -> None:
    """nnU-Net knows it by its name only."""
    root = LAYOUTS["decathlon"](dataset, tmp_path / "in")
    content = written(root)
    content["labels"] = {"nothing": 0, "core": 5, "edge": 7}
    (root / "dataset.json").write_text(json.dumps(content))
    api.convert(root, tmp_path / "out")
    assert written(tmp_path / "out")["labels"] == {"background": 0, "core": 1, "edge": 2}
