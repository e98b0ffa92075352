"""Headers that claim more than the file holds, or what cannot be: refused by name, before memory is taken."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.made.allocations import little_memory
from volseg.errors import DataError
from volseg.io.volumes import check_image, read_mask, read_volume


def nifti(
    path: Path,
    shape: tuple[int, ...] = (5, 4, 3),
    dtype: str = "i2",
    content: bytes | None = None,
    kind: type[nibabel.Nifti1Header] = nibabel.Nifti1Header,
    **fields: float,
) -> Path:
    """Write a header with any fields, and 120 bytes of voxels (or the given ones)."""
    header = kind(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = kind.single_magic, kind.single_vox_offset
    for name, value in {"scl_slope": 1, "scl_inter": 0, **fields}.items():
        header[name] = value
    voxels = np.arange(60, dtype="<i2").tobytes() if content is None else content
    file = header.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(file) if path.name.endswith(".gz") else file)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nibabel.Nifti1Header, (1000, 1000, 1500)),
        (nibabel.Nifti1Header, (32767, 32767, 32767, 32767)),
        (nibabel.Nifti2Header, (2**40, 2**40, 2**40)),
    ],
)
def test_voxels_that_the_file_does_not_hold(
    tmp_path: Path, suffix: str, kind: type[nibabel.Nifti1Header], shape: tuple[int, ...]
) -> None:
    path = nifti(tmp_path / f"scan{suffix}", shape, kind=kind)
    for read in (read_volume, read_mask):
        with little_memory(), pytest.raises(DataError, match="shorter than its header says") as error:
            read(path)
        assert str(path) in str(error.value)
        assert str(2 * np.prod(shape, dtype=object)) in str(error.value)  # the bytes that are claimed


def test_one_byte_too_few_and_one_too_many(tmp_path: Path) -> None:
    for suffix in (".nii", ".nii.gz"):
        with pytest.raises(DataError, match="shorter"):
            read_volume(nifti(tmp_path / f"few{suffix}", content=bytes(119)))
        read_volume(nifti(tmp_path / f"all{suffix}", content=bytes(120)))
        read_volume(nifti(tmp_path / f"many{suffix}", content=bytes(121)))


def test_an_archive_that_may_be_full_of_zeros_takes_memory_only_for_what_is_in_it(tmp_path: Path) -> None:
    """A megabyte of noise could be a gigabyte of zeros: only decompressing it shows that it is not."""
    noise = np.random.default_rng(0).bytes(1_000_000)
    path = nifti(tmp_path / "scan.nii.gz", (1000, 1000, 500), content=noise)
    with little_memory(), pytest.raises(DataError, match="shorter than its header says") as error:
        read_volume(path)
    assert "1000352 bytes" in str(error.value)


def test_an_archive_of_zeros_is_read_whole(tmp_path: Path) -> None:
    path = nifti(tmp_path / "mask.nii.gz", (400, 300, 200), "u1", bytes(23_999_999) + b"\7")
    assert path.stat().st_size < 30_000
    labels = read_mask(path).labels
    assert labels.sum() == labels[399, 299, 199] == 7


@pytest.mark.parametrize("offset", [np.nan, np.inf, -np.inf, -352, 0, 351, 352.5, 1e30, 3e9])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_impossible_start_of_the_voxels(tmp_path: Path, suffix: str, offset: float) -> None:
    path = nifti(tmp_path / f"scan{suffix}", vox_offset=offset)
    with little_memory(), pytest.raises(DataError, match=r"truncated|corrupt") as error:
        read_volume(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("code", "bits", "name"),
    [(32, 64, "complex64"), (1792, 128, "complex128"), (128, 24, "RGB"), (2304, 32, "RGBA")],
)
def test_voxels_that_are_not_one_number_are_refused_by_their_type(
    tmp_path: Path, code: int, bits: int, name: str
) -> None:
    path = nifti(tmp_path / "scan.nii", content=bytes(60 * bits // 8), datatype=code, bitpix=bits)
    with pytest.raises(DataError, match=rf"not plain numbers[\s\S]*found: {name}\n") as error:
        read_volume(path)
    assert str(path) in str(error.value)


def test_128_bit_floats_are_read_or_refused_by_name(tmp_path: Path) -> None:
    """Few computers have them; x86 has 80 bits in the same room."""
    path = nifti(tmp_path / "scan.nii", content=bytes(60 * 16), datatype=1536, bitpix=128)
    if nibabel.casting.have_binary128():
        assert read_volume(path).data.dtype == np.float64
    else:
        with pytest.raises(DataError, match="code 1536 not supported"):
            read_volume(path)


@pytest.mark.parametrize(("slope", "inter"), [(np.inf, 0), (-np.inf, 0), (1, np.nan), (2, np.inf)])
def test_a_scaling_that_is_not_finite(tmp_path: Path, slope: float, inter: float) -> None:
    with pytest.raises(DataError, match="scaling") as error:
        read_volume(nifti(tmp_path / "scan.nii", scl_slope=slope, scl_inter=inter))
    assert "scan.nii" in str(error.value)


@pytest.mark.parametrize("slope", [0, np.nan])
def test_a_blank_scaling_is_none(tmp_path: Path, slope: float) -> None:
    volume = read_volume(nifti(tmp_path / "scan.nii", scl_slope=slope, scl_inter=7))
    np.testing.assert_array_equal(volume.data.ravel(order="F"), np.arange(60))


def test_a_scaling_beyond_float32_is_found_by_the_check_of_the_image(tmp_path: Path) -> None:
    volume = read_volume(nifti(tmp_path / "scan.nii", scl_slope=3e38))
    with pytest.raises(DataError, match=r"not finite[\s\S]*scan\.nii|scan\.nii[\s\S]*not finite"):
        check_image(volume, [tmp_path / "scan.nii"])


@pytest.mark.parametrize("value", [1e300, -1e300, 3.4e38])
def test_values_that_float32_cannot_compute_with(tmp_path: Path, value: float) -> None:
    voxels = np.arange(60, dtype="f8")
    voxels[7] = value
    path = nifti(tmp_path / "scan.nii", dtype="f8", content=voxels.tobytes())
    with pytest.raises(DataError, match="too large") as error:
        check_image(read_volume(path), [path])
    assert str(path) in str(error.value)


LIMITED = """
import resource, sys
from volseg.errors import DataError
from volseg.io.volumes import read_volume
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
try:
    read_volume(sys.argv[1])
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_too_little_memory_names_the_file_and_its_size(tmp_path: Path) -> None:
    """The file is what it says: 300 MB of zeros."""
    path = nifti(tmp_path / "scan.nii.gz", (500, 600, 1000), "u1", bytes(300_000_000))
    run = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("there is too little memory to read the file")
    assert str(path) in run.stdout
    assert "292 KB" in run.stdout
