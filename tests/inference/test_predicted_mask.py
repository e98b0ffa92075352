"""A mask from Python: saved in the format of its name, from a file with sister channels, from a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from torch import nn

import volseg
from tests.made.folder_runs import Image
from volseg.errors import DataError, ModelFileError, OutputError
from volseg.inference.predictor import Predictor
from volseg.io.volumes import read_mask
from volseg.planning.channel import ChannelIntensity
from volseg.planning.plan import Plan


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nii", "m.seg.nrrd", "m.nrrd", "m.mha", "m.mgz"])
def test_a_mask_is_saved_in_the_format_of_its_name(
    name: str, predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    mask = predictor.predict(scans / "plain.nii.gz")
    mask.save(tmp_path / "new" / name)
    saved = read_mask(tmp_path / "new" / name)
    assert np.array_equal(saved.labels, mask.labels)
    assert saved.grid.same_as(mask.grid, tolerance_mm=1e-4)
    assert mask.classes == {"background": 0, "left": 205, "right": 500, "top": 600}


def test_a_mask_of_a_file_has_its_header_and_one_of_an_array_its_affine(
    predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    source = nibabel.load(scans / "plain.nii.gz")
    predictor.predict(str(scans / "plain.nii.gz")).save(str(tmp_path / "file.nii.gz"))
    predictor.predict(np.asanyarray(source.dataobj), source.affine).save(tmp_path / "array.nii.gz")
    for name in ("file", "array"):
        saved = nibabel.load(tmp_path / f"{name}.nii.gz")
        assert saved.affine.tobytes() == source.affine.tobytes()
        assert b"left" in saved.header.extensions[0].get_content()
    predictor.predict(scans / "plain.nii.gz").save(tmp_path / "m.seg.nrrd")
    assert SimpleITK.ReadImage(str(tmp_path / "m.seg.nrrd")).GetMetaData("Segment0_Name") == "left"
    with pytest.raises(OutputError, match="not written"):
        predictor.predict(scans / "plain.nii.gz").save(tmp_path / "m.png")


def test_saving_replaces_a_file_only_where_asked_and_never_the_scan(
    predictor: Predictor, scans: Path, tmp_path: Path
) -> None:
    mask = predictor.predict(scans / "plain.nii.gz")
    path = tmp_path / "m.nii.gz"
    path.write_bytes(b"painted by hand")
    with pytest.raises(OutputError, match=r"exists(.|\n)*overwrite=True"):
        mask.save(path)
    assert path.read_bytes() == b"painted by hand"
    mask.save(path, overwrite=True)
    assert np.array_equal(read_mask(path).labels, mask.labels)
    before = (scans / "plain.nii.gz").read_bytes()
    (tmp_path / "link.nii.gz").symlink_to(scans / "plain.nii.gz")
    with pytest.raises(OutputError, match="replace its scan"):
        mask.save(tmp_path / "link.nii.gz", overwrite=True)
    assert (scans / "plain.nii.gz").read_bytes() == before


def test_sister_channels_are_found_as_the_command_finds_them(
    make_plan: Callable[..., Plan], nearest_model: nn.Module, scan: Image, tmp_path: Path
) -> None:
    intensity = ChannelIntensity(rule="ct", clip_low=-1e4, clip_high=1e4, mean=0.0, std=1.0)
    plan = make_plan(channels=("CT", "PET"), intensity=(intensity, intensity))
    predictor = Predictor.from_model(nearest_model, plan, device="cpu")
    data = np.asanyarray(scan.dataobj)
    for number in range(2):
        nibabel.save(Image(data + number, scan.affine), tmp_path / f"x_000{number}.nii.gz")
    for given in (tmp_path / "x_0000.nii.gz", str(tmp_path / "x_0001.nii.gz"), tmp_path):
        assert np.array_equal(predictor.read(given).data, np.stack([data, data + 1]))
    (tmp_path / "x_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="x_0001"):
        predictor.read(tmp_path / "x_0000.nii.gz")


def test_a_folder_of_scans_is_not_one_scan(predictor: Predictor, scans: Path) -> None:
    with pytest.raises(DataError, match=r"3 scans(.|\n)*volseg\.predict"):
        predictor.predict(scans)


def test_a_run_folder_stands_for_its_final_model(trained_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        volseg.load(run, device="cpu")
    (run / "model_best.safetensors").write_bytes(trained_model.read_bytes())
    with pytest.raises(ModelFileError, match=r"training has not finished; give .*model_best\.safetensors"):
        volseg.load(run, device="cpu")
    (run / "model.safetensors").write_bytes(trained_model.read_bytes())
    assert volseg.load([run, trained_model], device="cpu").model_files == (run / "model.safetensors", trained_model)
