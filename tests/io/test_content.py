from __future__ import annotations

import hashlib
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from volseg.errors import DataError
from volseg.io.content import file_sha256, scan_sha256
from volseg.io.volumes import files_of


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def write_pair(folder: Path) -> Path:
    image = nibabel.Nifti1Pair(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    nibabel.save(image, folder / "scan.img")
    return folder / "scan.img"


def write_metaimage(folder: Path) -> Path:
    image = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    SimpleITK.WriteImage(image, str(folder / "scan.mhd"))
    return folder / "scan.mhd"


@pytest.mark.parametrize("write", [write_pair, write_metaimage])
def test_every_file_of_a_scan_counts_and_names_and_dates_do_not(write, tmp_path: Path) -> None:
    scan = write(tmp_path)
    files, before = files_of(scan), scan_sha256([scan])
    assert len(files) == 2
    for file in files:
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert scan_sha256([scan]) != before
        file.write_bytes(whole)
        os.utime(file, (0, 0))
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in files:
        file.rename(moved / file.name)
    assert scan_sha256([moved / scan.name]) == before


def test_the_order_of_channels_counts(tmp_path: Path) -> None:
    for name in "ab":
        nibabel.save(nibabel.Nifti1Image(np.full((2, 2, 2), ord(name), np.int16), np.eye(4)), tmp_path / f"{name}.nii")
    paths = [tmp_path / "a.nii", tmp_path / "b.nii"]
    assert scan_sha256(paths) != scan_sha256(paths[::-1])


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    scan = write_pair(tmp_path)
    scan.with_suffix(".hdr").unlink()
    with pytest.raises(DataError, match=r"scan\.hdr"):
        scan_sha256([scan])
