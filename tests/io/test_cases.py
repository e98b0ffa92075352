from __future__ import annotations

from pathlib import Path

import pytest

from volseg.errors import DataError
from volseg.io.cases import list_images


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(path: Path, channels: int = 1) -> dict[str, list[str]]:
    cases = list_images(path, channels)
    assert all(case.label is None for case in cases)
    return {case.id: [image.name for image in case.images] for case in cases}


def test_a_folder_of_single_channel_scans(tmp_path) -> None:
    folder = touch(tmp_path, "b é.nii.gz", "a.nii", "._a.nii", ".hidden.nii.gz", "notes.txt", "c.nrrd")
    (tmp_path / "folder.nii.gz").mkdir()
    assert found(folder) == {"a": ["a.nii"], "b é": ["b é.nii.gz"], "c": ["c.nrrd"]}
    assert list(found(folder)) == ["a", "b é", "c"]


def test_the_channel_number_goes_only_if_all_have_it(tmp_path) -> None:
    assert found(touch(tmp_path / "all", "a_0000.nii.gz", "b_0000.nii.gz")) == {
        "a": ["a_0000.nii.gz"],
        "b": ["b_0000.nii.gz"],
    }
    assert list(found(touch(tmp_path / "some", "a_0000.nii.gz", "b_0001.nii.gz"))) == ["a_0000", "b_0001"]


def test_several_channels_form_a_case(tmp_path) -> None:
    folder = touch(tmp_path, "a_0001.nii.gz", "a_0000.nii.gz", "b_0000.nii.gz", "c.nii.gz")
    cases = found(folder, channels=2)
    assert cases == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz"], "c": ["c.nii.gz"]}


def test_whole_files_with_numbers_are_not_channels(tmp_path) -> None:
    assert list(found(touch(tmp_path, "scan_0001.nii.gz", "scan_0002.nii.gz"), channels=4)) == [
        "scan_0001",
        "scan_0002",
    ]


def test_a_single_file(tmp_path) -> None:
    folder = touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b.nii.gz", "b_0000.nii.gz")
    assert found(folder / "b.nii.gz") == {"b": ["b.nii.gz"]}
    assert found(folder / "b.nii.gz", channels=2) == {"b": ["b.nii.gz"]}
    assert found(folder / "a_0000.nii.gz") == {"a": ["a_0000.nii.gz"]}
    assert found(folder / "a_0000.nii.gz", channels=2) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}


def test_a_file_of_another_kind_is_listed_and_fails_when_read(tmp_path) -> None:
    assert found(touch(tmp_path, "a.png") / "a.png") == {"a": ["a.png"]}


def test_nothing_to_predict(tmp_path) -> None:
    with pytest.raises(DataError, match="no scans"):
        list_images(touch(tmp_path / "empty", "readme.txt"))
    with pytest.raises(DataError, match="does not exist"):
        list_images(tmp_path / "nowhere")


def test_two_files_of_one_name(tmp_path) -> None:
    with pytest.raises(DataError, match="same case name"):
        list_images(touch(tmp_path, "a.nii", "a.nii.gz"))
