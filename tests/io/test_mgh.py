"""FreeSurfer's MGH and MGZ, and pairs of NIfTI: the voxels and grid that nibabel gives, and damaged files as errors."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.made.affines import affine_of
from volseg.errors import DataError, OutputError
from volseg.geometry.grid import Grid
from volseg.geometry.volume import Mask
from volseg.io.volumes import read_grid, read_mask, read_volume, volume_stem, write_mask

AFFINE = affine_of("PIR", (0.7, 1.3, 2.5), (10, -20, 30))
VALUES = np.random.default_rng(0).integers(0, 200, (3, 4, 5, 2))


def save(path: Path, values: np.ndarray) -> Path:
    """Write by nibabel."""
    kind: Any = nibabel.Nifti1Pair if path.suffix == ".img" else nibabel.MGHImage
    nibabel.save(kind(values, AFFINE), path)
    return path


def oracle(path: Path) -> Any:
    """Read by nibabel, from memory: it would leave an ``.mgh`` file open."""
    if path.suffix == ".img":
        return nibabel.load(path)
    content = path.read_bytes()
    return nibabel.MGHImage.from_bytes(gzip.decompress(content) if path.suffix == ".mgz" else content)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "a.img"])
def test_the_voxels_and_the_grid_of_nibabel(name: str, dtype: type[np.generic], tmp_path: Path) -> None:
    for values in (VALUES[..., 0].astype(dtype), VALUES.astype(dtype)):
        path = save(tmp_path / name, values)
        volume = read_volume(path)
        assert volume.data.dtype == dtype
        assert volume.data.dtype.isnative
        np.testing.assert_array_equal(volume.data, values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0))
        np.testing.assert_allclose(volume.grid.affine, oracle(path).affine, atol=1e-5)
        assert read_grid(path).same_as(Grid((3, 4, 5), AFFINE))


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
@pytest.mark.parametrize("largest", [200, 40_000, 65_535])
def test_masks_come_back(largest: int, name: str, tmp_path: Path) -> None:
    grid = Grid((3, 4, 5), AFFINE)
    labels = VALUES[..., 0].copy()
    labels[0, 0, 0] = largest
    write_mask(tmp_path / name, Mask(labels, grid))
    mask = read_mask(tmp_path / name)
    assert np.array_equal(mask.labels, labels)
    assert mask.grid.same_as(grid)
    assert np.array_equal(np.asanyarray(oracle(tmp_path / name).dataobj), labels)


def test_a_mask_for_a_pair_is_one_file_with_its_affine(tmp_path: Path) -> None:
    source = save(tmp_path / "a.img", VALUES[..., 0].astype(np.int16))
    write_mask(tmp_path / "m.nii.gz", Mask(VALUES[..., 0], read_grid(source)), source)
    written = nibabel.load(tmp_path / "m.nii.gz")
    assert written.affine.tobytes() == nibabel.load(source).affine.tobytes()
    with pytest.raises(OutputError, match="one file"):
        write_mask(tmp_path / "m.img", Mask(VALUES[..., 0], read_grid(source)))


def test_shear_is_kept(tmp_path: Path) -> None:
    grid = Grid((2, 2, 2), np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    write_mask(tmp_path / "a.mgz", Mask(np.zeros(grid.shape, np.uint8), grid))
    assert read_grid(tmp_path / "a.mgz").same_as(grid)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    values = VALUES[..., 0].astype(np.int16)
    save(tmp_path / "lonely.img", values)
    (tmp_path / "lonely.hdr").unlink()
    save(tmp_path / "short.img", values)
    (tmp_path / "short.img").write_bytes((tmp_path / "short.img").read_bytes()[:-1])
    whole = save(tmp_path / "a.mgh", values).read_bytes()
    (tmp_path / "short.mgh").write_bytes(whole[:300])
    (tmp_path / "huge.mgh").write_bytes(whole[:4] + b"\x00\x00\x10\x00" * 3 + whole[16:])
    (tmp_path / "directions.mgh").write_bytes(whole[:28] + b"\0\0" + whole[30:])
    (tmp_path / "text.mgz").write_bytes(b"hello")
    for name, problem in {
        "lonely.img": r"header of the image does not exist(\n.*)*lonely\.hdr",
        "short.img": "shorter than its header",
        "short.mgh": "shorter than its header",
        "huge.mgh": "shorter than its header",
        "directions.mgh": "no directions",
        "text.mgz": r"not compressed but named \.mgz",
    }.items():
        with pytest.raises(DataError, match=problem) as caught:
            read_volume(tmp_path / name)
        assert caught.value.file == str(tmp_path / name)


def test_changed_bytes_are_errors_or_voxels(tmp_path: Path) -> None:
    """No other exception, and never another shape."""
    rng = np.random.default_rng(3)
    whole = {name: save(tmp_path / name, VALUES.astype(np.int16)).read_bytes() for name in ("a.mgz", "a.mgh", "a.img")}
    whole["a.hdr"] = (tmp_path / "a.hdr").read_bytes()
    for name, before in whole.items():
        for _ in range(100):
            content = bytearray(before[: rng.integers(1, len(before))] if rng.random() < 0.2 else before)
            for position in rng.integers(0, min(len(content), 350), rng.integers(1, 4)):
                content[position] = rng.integers(256)
            (tmp_path / name).write_bytes(content)
            with suppress(DataError):
                volume = read_volume(tmp_path / (name if name != "a.hdr" else "a.img"))
                assert volume.data.shape[1:] == volume.grid.shape
        (tmp_path / name).write_bytes(before)


def test_names() -> None:
    assert [volume_stem(name) for name in ("a.b.mgz", "a.mgh", "a.img")] == ["a.b", "a", "a"]
