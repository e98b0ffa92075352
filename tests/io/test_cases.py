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


def listed(folder: Path, text: str, channels: int = 1) -> dict[str, list[str]]:
    (folder / "scans.txt").write_text(text, encoding="utf-8")
    cases = list_images(folder / "scans.txt", channels)
    return {case.id: [str(image.relative_to(folder)) for image in case.images] for case in cases}


def test_a_list_of_scans(tmp_path) -> None:
    touch(tmp_path / "sub", "b é.nii.gz")
    touch(tmp_path, "a.nii", "odd, #1.nii", "c.nii", "odd, ")
    text = "\ufeff# the first\r\nsub/b é.nii.gz   # good\r\n\r\n  a.nii\t# tab\r\nodd, #1.nii\n#c.nii\n"
    assert listed(tmp_path, text) == {"a": ["a.nii"], "b é": ["sub/b é.nii.gz"], "odd, #1": ["odd, #1.nii"]}
    (tmp_path / "scans.txt").write_text(str(tmp_path / "c.nii"))
    assert [case.images for case in list_images(tmp_path / "scans.txt")] == [(tmp_path / "c.nii",)]


def test_a_list_with_channels(tmp_path) -> None:
    """By commas or tabs, DICOM series by their folders; one file stands for its sister channels."""
    touch(tmp_path, "a_0000.nii", "a_0001.nii", "t1.nii", "t2.nii", "b.nii")
    for series in ("p1/T1.ax", "p1/T2.ax"):
        touch(tmp_path / series, "IM1")
    text = "t1.nii , t2.nii\np1/T1.ax\tp1/T2.ax\na_0000.nii\nb.nii\n" + ", ".join(["x" * 200] * 2)
    assert list(listed(tmp_path, text, channels=2).items())[:4] == [
        ("T1.ax", ["p1/T1.ax", "p1/T2.ax"]),
        ("a", ["a_0000.nii", "a_0001.nii"]),
        ("b", ["b.nii"]),
        ("t1", ["t1.nii", "t2.nii"]),
    ]
    assert listed(tmp_path, "a_0000.nii,a_0001.nii", channels=2) == {"a": ["a_0000.nii", "a_0001.nii"]}
    assert listed(tmp_path, "a_0000.nii") == {"a": ["a_0000.nii"]}


def test_lists_that_cannot_be_used(tmp_path) -> None:
    touch(tmp_path / "p1", "ct.nii", "t1.nii")
    touch(tmp_path / "p2", "ct.nii")
    with pytest.raises(DataError, match=r"scans\.txt(.|\n)*ct: lines 1, 3"):
        listed(tmp_path, "p1/ct.nii\np1/t1.nii\np2/ct.nii\n")
    with pytest.raises(DataError, match=r"empty path(.|\n)*scans\.txt(.|\n)*line 2"):
        listed(tmp_path, "p1/t1.nii\np1/ct.nii,,p2/ct.nii\n")
    with pytest.raises(DataError, match=r"none of the listed(.|\n)*line 2: .*p3/ct\.nii(.|\n)*relative to"):
        listed(tmp_path, "# they moved\np3/ct.nii\n")
    with pytest.raises(DataError, match="names no scans"):
        listed(tmp_path, "# nothing yet\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*binary\.txt"):
        list_images(tmp_path / "binary.txt")


def test_a_listed_scan_that_is_gone_is_named_with_its_line(tmp_path, caplog) -> None:
    touch(tmp_path, "a.nii")
    assert listed(tmp_path, "a.nii\nb.nii\n") == {"a": ["a.nii"], "b": ["b.nii"]}
    assert "line 2" in caplog.text
    assert "b.nii does not exist" in caplog.text
    assert "line 1" not in caplog.text


def test_a_numbered_file_of_another_kind_with_channels(tmp_path) -> None:
    assert found(touch(tmp_path, "a_0000.png") / "a_0000.png", channels=2) == {"a": ["a_0000.png"]}
