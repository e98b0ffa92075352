from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg.config.load import load_config
from volseg.errors import DataError, VolsegError
from volseg.evaluation.sources import find_masks
from volseg.io.cases import list_images
from volseg.io.content import scan_sha256
from volseg.io.datasets import read_dataset
from volseg.io.description import read_description
from volseg.io.model_file import read_metadata
from volseg.io.volumes import read_volume
from volseg.planning.plan import Plan


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
    assert found(folder) == {"a": ["a.nii"], "b é": ["b é.nii.gz"], "c": ["c.nrrd"]}
    assert list(found(folder)) == ["a", "b é", "c"]


def test_what_has_the_name_of_a_scan_is_a_case_and_fails_when_read(tmp_path) -> None:
    """A folder, a link to nothing, and a pipe, which is not opened: nobody may ever write to it."""
    folder = touch(tmp_path, "a.nii")
    (folder / "folder.nii.gz").mkdir()
    (folder / "link.nii.gz").symlink_to(folder / "gone.nii.gz")
    os.mkfifo(folder / "pipe.nii")
    cases = {case.id: case.images[0] for case in list_images(folder)}
    reasons = {"folder": "no DICOM series", "link": r"leads to nothing(\n.*)*gone", "pipe": "not a regular file"}
    assert cases.keys() == {"a", *reasons}
    for name, reason in reasons.items():
        for read in (read_volume, lambda path: scan_sha256([path])):
            with pytest.raises(DataError, match=reason) as error:
                read(cases[name])
            assert error.value.file == str(cases[name])


def test_other_entries_are_named(tmp_path, caplog) -> None:
    folder = touch(tmp_path, "a.nii", "notes.txt", "a.png", ".hidden")
    touch(tmp_path / "patient2", "b.nii")
    list_images(folder)
    assert "not read as scans: a.png, patient2" in caplog.text


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch) -> None:
    touch(tmp_path, "a.nii")

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    for read in (list_images, find_masks):
        with pytest.raises(DataError, match="Permission denied") as error:
            read(tmp_path)
        assert error.value.file == str(tmp_path)


@pytest.mark.parametrize("path", ["/" + "x/" * 2500, "x" * 5000, "a\0b"])
def test_paths_that_cannot_exist(path: str) -> None:
    for read in (list_images, find_masks, read_dataset, read_description, read_volume, read_metadata, Plan.load):
        with pytest.raises(VolsegError):
            read(path)
    with pytest.raises(VolsegError):
        load_config(path)


def test_the_channel_number_goes_only_if_all_have_it(tmp_path) -> None:
    assert found(touch(tmp_path / "all", "a_0000.nii.gz", "b_0000.nii.gz")) == {
        "a": ["a_0000.nii.gz"],
        "b": ["b_0000.nii.gz"],
    }
    assert list(found(touch(tmp_path / "some", "a_0000.nii.gz", "b_0001.nii.gz"))) == ["a_0000", "b_0001"]


def test_several_channels_form_a_case(tmp_path) -> None:
    folder = touch(tmp_path, "a_0001.nii.gz", "a_0000.nii.gz", "b_0000.nii.gz", "c.nii.gz")
    cases = found(folder, channels=2)
    assert cases == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],  # which is missing, as reading it says
        "c": ["c.nii.gz"],
    }


def test_the_numbers_decide_which_channel_a_file_is(tmp_path) -> None:
    """A hole in them is a missing file, and not another channel; one too many is not left out."""
    names = ["a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"]
    folder = touch(tmp_path, names[0], names[2])
    assert found(folder, channels=2) == {"a": names}  # of which the second is missing, as reading it says
    touch(folder, names[1])
    assert found(folder, channels=2) == found(folder / names[0], channels=2) == {"a": names}


def test_a_second_channel_for_a_model_of_one_is_a_case_with_a_warning(tmp_path, caplog) -> None:
    assert list(found(touch(tmp_path / "a", "x_0000.nii", "x_0001.nii"))) == ["x_0000", "x_0001"]
    assert "look like a second channel: x_0001" in caplog.text
    caplog.clear()
    found(touch(tmp_path / "b", "x_0000.nii", "y_0000.nii"))
    assert caplog.text == ""


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
    for name in ("a_0000.nii.gz", "a_0001.nii.gz"):
        assert found(folder / name, channels=2) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    touch(tmp_path, "scan_2021.nii.gz", "scan_2022.nii.gz", "a_0000.nii", "a_0001.nii")
    assert found(folder / "scan_2021.nii.gz", channels=2) == {"scan_2021": ["scan_2021.nii.gz"]}
    assert found(folder / "a_0000.nii", channels=2) == {"a": ["a_0000.nii", "a_0001.nii"]}


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
    """By commas or tabs; one file stands for its sister channels."""
    touch(tmp_path, "a_0000.nii", "a_0001.nii", "t1.nii", "t2.nii", "b.nii")
    touch(tmp_path / "p1", "T1.ax.nii", "T2.ax.nii")
    text = "t1.nii , t2.nii\np1/T1.ax.nii\tp1/T2.ax.nii\na_0000.nii\nb.nii\n" + ", ".join(["x" * 200] * 2)
    assert list(listed(tmp_path, text, channels=2).items())[:4] == [
        ("T1.ax", ["p1/T1.ax.nii", "p1/T2.ax.nii"]),
        ("a", ["a_0000.nii", "a_0001.nii"]),
        ("b", ["b.nii"]),
        ("t1", ["t1.nii", "t2.nii"]),
    ]
    assert listed(tmp_path, "a_0000.nii,a_0001.nii", channels=2) == {"a": ["a_0000.nii", "a_0001.nii"]}
    assert listed(tmp_path, "a_0000.nii") == {"a": ["a_0000.nii"]}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/t1.nii", "b/t1.nii"], ["a", "b"]),
        (["s1/mr/t1.nii", "s2/mr/t1.nii", "s1/ct/t1.nii"], ["s1_ct", "s1_mr", "s2_mr"]),
        (["p1/ct.nii", "p1/t1.nii", "p2/ct.nii"], ["p1_ct", "p1_t1", "p2_ct"]),
        (["t1.nii", "a/t1.nii", "a/b/t1.nii"], ["a", "a_b", "t1"]),
        (["../t1.nii", "a/t1.nii"], ["scans_a", "t1"]),
    ],
)
def test_files_of_the_same_name_are_named_by_their_folders(tmp_path, paths, names) -> None:
    folder = touch(tmp_path / "scans")
    for path in paths:
        touch((folder / path).parent, Path(path).name)
    (folder / "scans.txt").write_text("\n".join(paths), encoding="utf-8")
    assert [case.id for case in list_images(folder / "scans.txt")] == names


def test_numbers_are_channels_only_of_files_with_one_channel(tmp_path) -> None:
    """``brain_1000`` is a case, and so are two 4D files whose names end in numbers."""
    touch(tmp_path / "numbered", "a_0000.nii", "a_0001.nii", "brain_1000.nii")
    cases = {"a": ["a_0000.nii", "a_0001.nii"], "brain_1000": ["brain_1000.nii"]}
    assert found(tmp_path / "numbered", channels=2) == cases
    whole = tmp_path / "4d"
    for number in range(2):
        scan = nibabel.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), np.eye(4))
        nibabel.save(scan, touch(whole) / f"case_000{number}.nii.gz")
    assert list(found(whole, channels=2)) == ["case_0000", "case_0001"]
    assert found(whole / "case_0000.nii.gz", channels=2) == {"case_0000": ["case_0000.nii.gz"]}


def test_lists_that_cannot_be_used(tmp_path) -> None:
    touch(tmp_path / "p1", "ct.nii", "t1.nii")
    touch(tmp_path / "p2", "ct.nii")
    with pytest.raises(DataError, match=r"scans\.txt(.|\n)*ct: lines 1, 3"):
        listed(tmp_path, "p1/ct.nii\np1/t1.nii\np1/ct.nii\n")
    with pytest.raises(DataError, match=r"empty path(.|\n)*scans\.txt(.|\n)*line 2"):
        listed(tmp_path, "p1/t1.nii\np1/ct.nii,,p2/ct.nii\n")
    with pytest.raises(DataError, match=r"none of the listed(.|\n)*line 2: .*p3/ct\.nii(.|\n)*relative to"):
        listed(tmp_path, "# they moved\np3/ct.nii\n")
    with pytest.raises(DataError, match="names no scans"):
        listed(tmp_path, "# nothing yet\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*binary\.txt"):
        list_images(tmp_path / "binary.txt")


def test_backslashes_and_quotes_in_lists(tmp_path) -> None:
    for folder, names in (("p1", ["ct.nii"]), ("p2", ["a, b.nii"]), ("p3", ["t1.nii", "t2.nii"]), (".", ["'c'.nii"])):
        touch(tmp_path / folder, *names)
    text = "p1\\ct.nii\r\n\"p2/a, b.nii\"\n'c'.nii\n"
    assert list(listed(tmp_path, text)) == ["'c'", "a, b", "ct"]
    assert listed(tmp_path, '"p3\\t1.nii", "p3\\t2.nii"\n', channels=2) == {"t1": ["p3/t1.nii", "p3/t2.nii"]}


def test_a_listed_scan_that_is_gone_is_named_with_its_line(tmp_path, caplog) -> None:
    touch(tmp_path, "a.nii")
    assert listed(tmp_path, "a.nii\nb.nii\n") == {"a": ["a.nii"], "b": ["b.nii"]}
    assert "line 2" in caplog.text
    assert "b.nii does not exist" in caplog.text
    assert "line 1" not in caplog.text


def test_a_numbered_file_of_another_kind_with_channels(tmp_path) -> None:
    assert found(touch(tmp_path, "a_0000.png") / "a_0000.png", channels=2) == {"a": ["a_0000.png", "a_0001.png"]}
