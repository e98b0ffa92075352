"""The geometry in the mask's header equals the scan's bit by bit; masks are written by the command."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import volseg
from tests.made.scan_files import HEADERS, OBLIQUE, STORAGE, Writer, raw_header, write_scan
from tests.made.trained import PLAN, dice, make_scan, metadata
from volseg.cli.main import main
from volseg.io.model_file import read_model, save_model
from volseg.io.volumes import read_grid, read_mask

VALUES, TRUTH, _ = make_scan(5)
SCANS: dict[str, Writer] = {
    **STORAGE,
    **HEADERS,
    **{f"oblique {name}": lambda path, v, a=affine: write_scan(path, v, a) for name, affine in OBLIQUE.items()},
    "qform only, oblique": lambda path, v: write_scan(path, v, OBLIQUE["far"], sform=0, qform=1),
    "another order of the axes": lambda path, v: write_scan(path, v, OBLIQUE["a little"][:, [2, 0, 1, 3]], qform=1),
}
GEOMETRY = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y")
GEOMETRY = (*GEOMETRY, "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "sizeof_hdr")


def predict(model: Path, source: Path, output: Path) -> None:
    arguments = ["--model", model, "--input", source, "--output", output, "--device", "cpu"]
    assert main(["predict", *map(str, arguments)]) == 0


def assert_same_geometry(mask: Path, scan: Path) -> None:
    ours, theirs = raw_header(mask), raw_header(scan)
    assert ours["dim"][:4].tolist() == [3, *theirs["dim"][1:4].tolist()]
    for name in GEOMETRY:  # the mask is in this machine's byte order, whatever the scan's
        assert ours[name].tobytes() == theirs[name].astype(ours[name].dtype).tobytes(), name
    assert nibabel.load(mask).affine.tobytes() == nibabel.load(scan).affine.tobytes()
    assert nibabel.load(mask).shape == nibabel.load(scan).shape[:3]
    assert read_grid(mask) == read_grid(scan)


@pytest.fixture(scope="module")
def masks(trained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of scans, half of them compressed, and the folder of their masks."""
    scans, output = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("masks")
    for number, name in enumerate(SCANS):
        SCANS[name](scans / f"{name}{'.nii' if number % 2 else '.nii.gz'}", VALUES)
    predict(trained_model, scans, output)
    return scans, output


@pytest.mark.parametrize("name", SCANS)
def test_a_mask_has_the_geometry_of_its_scan_to_the_bit(name: str, masks: tuple[Path, Path]) -> None:
    scan = next(path for path in masks[0].iterdir() if path.name in (f"{name}.nii", f"{name}.nii.gz"))
    assert_same_geometry(masks[1] / f"{name}.nii.gz", scan)


def test_labels_come_back_as_they_were_trained(masks: tuple[Path, Path], trained_model: Path) -> None:
    """205, 500 and 600 do not fit in 8 bits, and are not the numbers of the classes."""
    path = masks[1] / "int16.nii.gz"
    stored = np.asanyarray(nibabel.load(path).dataobj)
    assert stored.dtype == np.uint16
    assert np.unique(stored).tolist() == [0, 205, 500, 600]
    assert min(dice(stored, TRUTH, label) for label in (205, 500, 600)) > 0.75
    assert np.array_equal(stored, volseg.load(trained_model, device="cpu").predict(masks[0] / "int16.nii.gz").labels)
    header = raw_header(path)
    assert (header["scl_slope"], header["scl_inter"]) == (1, 0)


@pytest.mark.data
@pytest.mark.parametrize(
    "scan",
    [
        "CT_example/ct_trunk_3mm.nii.gz",
        "CT_example/ct_trunk_3mm_part.nii.gz",
        "CHAOS_MR/imagesTr/*.nii.gz",
        "Task04_Hippocampus/imagesTr/*.nii.gz",
    ],
)
def test_real_files(scan: str, trained_model: Path, data_root: Path, tmp_path: Path) -> None:
    """Real headers. What the network finds there means nothing, so its plan is made coarse and quick."""
    state, _ = read_model(trained_model)
    d, h, w = PLAN.spacing_mm
    plan = dataclasses.replace(PLAN, spacing_mm=(6 * d, 6 * h, 6 * w))  # the same ratios: they decide the kernels
    save_model(tmp_path / "coarse.safetensors", state, metadata(plan))
    source: Any = sorted(data_root.glob(scan))[0]
    predict(tmp_path / "coarse.safetensors", source, tmp_path / "masks")
    mask = tmp_path / "masks" / source.name
    assert_same_geometry(mask, source)
    assert set(np.unique(read_mask(mask).labels).tolist()) <= {0, 205, 500, 600}
    content, image = gzip.decompress(mask.read_bytes()), nibabel.load(mask)
    itemsize = np.asanyarray(image.dataobj).dtype.itemsize
    assert len(content) == image.dataobj.offset + itemsize * np.prod(nibabel.load(source).shape)
