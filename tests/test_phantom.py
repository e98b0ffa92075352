from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg.errors import OutputError
from volseg.geometry import ops
from volseg.io.datasets import read_dataset
from volseg.io.volumes import read_mask, read_volume
from volseg.phantom import LABELS, OBLIQUE_CASE, make_phantom, write_phantoms
from volseg.planning.derive import make_plan
from volseg.planning.fingerprint import fingerprint

COUNT = 4

phantom = cache(make_phantom)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "set", COUNT, seed=1, count_test=1)


def test_it_is_a_decathlon_data_set(root: Path) -> None:
    dataset = read_dataset(root)
    assert [case.id for case in dataset.cases] == [f"phantom_{number:03d}" for number in range(COUNT)]
    assert (dataset.channels, dataset.modality, dataset.labels) == (("CT",), "ct", LABELS)
    assert json.loads((root / "dataset.json").read_text())["test"] == [f"./imagesTs/phantom_{COUNT:03d}.nii.gz"]
    for kind in ("images", "labels"):
        assert [path.name for path in (root / f"{kind}Ts").iterdir()] == [f"phantom_{COUNT:03d}.nii.gz"]


def test_the_files_hold_what_was_made(root: Path) -> None:
    image, label, grid = make_phantom(2, seed=1)
    volume, mask = (read(root / f"{kind}Tr/phantom_002.nii.gz") for read, kind in READERS)
    np.testing.assert_array_equal(volume.data[0], image)
    np.testing.assert_array_equal(mask.labels, label)
    assert (volume.data.dtype, mask.labels.dtype) == (np.int16, np.uint8)
    assert volume.grid.same_as(grid)
    assert volume.grid.same_as(mask.grid)


READERS = ((read_volume, "images"), (read_mask, "labels"))


def test_cases_differ_in_shape_spacing_and_orientation_and_one_is_oblique() -> None:
    grids = [phantom(index)[2] for index in range(6)]
    assert len({grid.orientation for grid in grids}) == 6
    assert len({grid.shape for grid in grids}) == 6
    assert len({grid.spacing_mm for grid in grids}) == 6
    for index, grid in enumerate(grids):
        assert max(grid.spacing_mm) > 1.4 * min(grid.spacing_mm)
        directions = grid.affine[:3, :3] / grid.spacing_mm
        assert (np.abs(directions).max(axis=0) < 0.999).all() == (index == OBLIQUE_CASE)


def test_seed_and_index_decide() -> None:
    first, again, other = phantom(0), make_phantom(0), make_phantom(0, seed=6)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[2] == again[2] != other[2]


@pytest.mark.parametrize("index", range(6))
def test_the_anatomy_is_that_of_a_person(index: int) -> None:
    image, label, grid = phantom(index)
    assert set(np.unique(label)) == set(LABELS.values())
    place = {name: grid.to_mm(np.argwhere(label == value).mean(axis=0)) for name, value in LABELS.items() if value > 0}
    right, anterior, superior = 0, 1, 2
    assert place["liver"][right] > 20 > -20 > place["spleen"][right]
    assert place["right_kidney"][right] > 20 > -20 > place["left_kidney"][right]
    assert place["aorta"][anterior] > place["spine"][anterior]
    assert place["bladder"][superior] < place["left_kidney"][superior] < place["liver"][superior]
    hu = {name: image[label == value].mean() for name, value in LABELS.items()}
    assert hu["bladder"] < 40 < 60 < hu["liver"] < 160
    assert 230 < hu["spine"] < 350
    voxel_ml = np.prod(grid.spacing_mm) / 1000
    assert 500 < np.count_nonzero(label == LABELS["liver"]) * voxel_ml < 2000
    assert 50 < np.count_nonzero(label == LABELS["right_kidney"]) * voxel_ml < 250


def test_noise_bias_and_partial_volume_are_there() -> None:
    image, label, grid = phantom(0)
    image, label = ops.reorient(np.stack([image, label]), grid, "SPL")[0]
    liver = label == LABELS["liver"]
    inside = liver & np.roll(liver, 1, 1) & np.roll(liver, -1, 1) & np.roll(liver, 1, 2) & np.roll(liver, -1, 2)
    inside &= np.roll(liver, 1, 0) & np.roll(liver, -1, 0)
    assert 15 < image[inside].std() < 35
    border = liver & ~inside
    assert image[border].mean() < image[inside].mean() - 15  # mixed with the fat around
    assert image.min() >= -1024
    assert image[:, 0, 0].mean() == pytest.approx(-1000, abs=15)


def test_a_case_takes_less_than_a_second() -> None:
    begun_s = time.process_time()
    make_phantom(0)
    assert time.process_time() - begun_s < 1


def test_its_plan(root: Path) -> None:
    plan = make_plan(fingerprint(read_dataset(root)))
    assert plan.orientation == "SPL"
    assert plan.intensity[0].rule == "ct"
    assert 2 not in plan.mirror_axes  # left and right kidney
    assert 20 <= plan.patch_size[0] <= 28
    assert all(40 <= size <= 64 for size in plan.patch_size[1:])


def test_the_header_says_scanner_millimetres(root: Path) -> None:
    header = nibabel.load(root / "imagesTr/phantom_001.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_phantoms(tmp_path / "file", 1)


def test_another_data_set_is_not_replaced(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 1)
    write_phantoms(tmp_path, 1)
    for text in ('{"name": "Liver", "labels": {}}', "[]", "not JSON"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(OutputError, match=r"dataset\.json"):
            write_phantoms(tmp_path, 1)
        assert (tmp_path / "dataset.json").read_text() == text


def test_scans_without_a_description_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "phantom_000.nii.gz").write_bytes(b"mine")
    with pytest.raises(OutputError, match="holds other scans"):
        write_phantoms(tmp_path, 1)
    assert (tmp_path / "imagesTr" / "phantom_000.nii.gz").read_bytes() == b"mine"
