"""``volseg predict``: exit codes, messages, and what is imported when."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from torch import nn

from volseg.cli import predict
from volseg.errors import ConfigError, ModelFileError
from volseg.inference.options import PredictOptions
from volseg.inference.predictor import Predictor
from volseg.io.model_file import save_model
from volseg.planning.plan import Plan


@pytest.fixture
def model(tmp_path: Path, make_plan: Callable[..., Plan], build: Callable[..., nn.Module]) -> Path:
    plan = make_plan(spacing_mm=(4.0, 4.0, 4.0))  # few windows
    settings: dict[str, Any] = {"encoder": "identity", "features": 4, "max_features": 8}
    metadata = {"config": {"model": settings}, "plan": plan.to_dict(), "labels": plan.labels}
    save_model(tmp_path / "model.safetensors", build(plan, **settings).state_dict(), metadata)
    return tmp_path / "model.safetensors"


@pytest.fixture
def scans(tmp_path: Path, scan: nibabel.Nifti1Image) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in "ab":
        nibabel.save(scan, folder / f"{name}.nii.gz")
    return folder


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    return predict.run(parser.parse_args([str(argument) for argument in arguments]))


def test_all_fine(model: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", model, "--input", scans, "--output", tmp_path / "out", "--device", "cpu")
    assert run(*arguments) == 0
    assert "2 predicted, 0 skipped (up to date), 0 failed" in capsys.readouterr().out
    assert run(*arguments) == 0
    assert "0 predicted, 2 skipped (up to date), 0 failed" in capsys.readouterr().out
    assert run(*arguments, "--tta") == 2
    assert run(*arguments, "--tta", "--overwrite") == 0


def test_some_failed(
    model: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (scans / "b.nii.gz").write_bytes(b"not a scan")
    assert run("--model", model, "--input", scans, "--output", tmp_path / "out", "--device", "cpu") == 1
    output = capsys.readouterr()
    assert "1 predicted, 0 skipped (up to date), 1 failed" in output.out
    assert output.err == ""  # no bar where there is no terminal
    assert "b failed: " in caplog.text
    assert str(scans / "b.nii.gz") in caplog.text


def test_nothing_could_be_done(model: Path, scans: Path, tmp_path: Path) -> None:
    for path in scans.iterdir():
        path.write_bytes(b"")
    assert run("--model", model, "--input", scans, "--output", tmp_path / "out", "--device", "cpu") == 2


def test_no_model(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        run("--model", scans / "a.nii.gz", "--input", scans, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards(model: Path, scans: Path, tmp_path: Path) -> None:
    common = ("--model", model, "--input", scans, "--output", tmp_path / "out", "--device", "cpu", "--shard")
    assert run(*common, "1/2") == 0
    assert (tmp_path / "out" / "b.nii.gz").is_file()
    assert not (tmp_path / "out" / "a.nii.gz").exists()
    assert run(*common, "0/2") == 0
    assert np.array_equal(*(np.asanyarray(nibabel.load(tmp_path / "out" / f"{name}.nii.gz").dataobj) for name in "ab"))


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "1/0", "1/2/3"])
def test_shards_that_make_no_sense(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--model", "m", "--input", "i", "--output", "o", f"--shard={text}")
    assert caught.value.code == 2
    assert "I/N" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["GB", "-4GB", "four GB", "4G B", "4 GBit", "0GB", "1e9B", "4,5GB"])
def test_amounts_that_make_no_sense(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("--model", "m", "--input", "i", "--output", "o", f"--max-memory={text}")
    assert caught.value.code == 2
    assert "for example 4GB, 1.5GiB or 500MB" in capsys.readouterr().err


def test_options_reach_the_predictor(model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, calls = Predictor.segment, []

    def noted(self: Predictor, volume: Any, options: PredictOptions, **paths: Any) -> Any:
        calls.append((options, {key: path and path.name for key, path in paths.items()}))
        return segment(self, volume, options, **paths)

    monkeypatch.setattr(Predictor, "segment", noted)
    common = ("--model", model, "--input", scans / "a.nii.gz", "--device", "cpu")
    assert run(*common, "--output", tmp_path / "one") == 0
    extras = ("--probabilities", "--uncertainty", "--split-classes")
    options = ("--tta", "--no-skip-air", "--max-memory", "2GB", *extras)
    assert run(*common, "--output", tmp_path / "two", *options) == 0
    assert calls == [
        (PredictOptions(), {"probabilities": None, "uncertainty": None}),
        (
            PredictOptions(tta=True, skip_air=False, max_memory_bytes=2 * 10**9),
            {"probabilities": "a_probabilities.nii", "uncertainty": "a_uncertainty.nii.gz"},
        ),
    ]
    assert sorted(path.name for path in (tmp_path / "two" / "a").iterdir()) == [
        "left.nii.gz",
        "right.nii.gz",
        "top.nii.gz",
    ]


def test_several_models(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def from_file(path: object, device: str, precision: str) -> Predictor:
        seen.append((path, device))
        raise ModelFileError("enough")

    monkeypatch.setattr(Predictor, "from_file", from_file)
    with pytest.raises(ModelFileError, match="enough"):
        run("--model", "a", "--model", "b", "--input", scans, "--output", tmp_path, "--device", "cpu")
    assert seen == [(["a", "b"], "cpu")]


def test_imports() -> None:
    """Looking at the command costs nothing; predicting does not import what only training needs."""
    code = (
        "import sys, volseg.cli.predict; print('torch' in sys.modules);"
        "import volseg.inference.cohort.run, volseg.inference.predictor, volseg.preprocessing.preprocess;"
        "heavy = ('monai', 'lightning', 'lightning_fabric', 'matplotlib', 'omegaconf');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["False", "[]"]


def test_postprocessing_instead_of_the_models(model: Path, scans: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--input", scans / "a.nii.gz", "--device", "cpu", "--output")
    assert run(*options, tmp_path / "out") == 0
    assert np.asarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj).any()
    assert run(*options, tmp_path / "out", "--postprocess", "none") == 0  # what the model does: nothing to change
    assert run(*options, tmp_path / "out", "--postprocess", "min_volume_ml=1000000", "fill_holes=all") == 2
    assert run(*options, tmp_path / "out", "--postprocess", "min_volume_ml=1000000", "--overwrite") == 0
    assert not np.asarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj).any()
    with pytest.raises(ConfigError, match=r"postprocess\.largest"):
        run(*options, tmp_path / "out", "--postprocess", "largest=all")
