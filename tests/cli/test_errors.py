"""What users get wrong: each time a message that names the file and the hint, an exit code, and no traceback."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from volseg.cli.main import main

Break = Callable[[Path], None]


def write(path: Path, array: np.ndarray, spacing: float = 2.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([spacing, spacing, spacing, 1.0])), path)


def make_dataset(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(3):
        label = np.zeros((8, 9, 10), np.uint8)
        label[2:5, 3:6, 2:8] = 1
        write(root / "imagesTr" / f"case_{index}.nii.gz", rng.normal(100, 20, label.shape).astype(np.float32))
        write(root / "labelsTr" / f"case_{index}.nii.gz", label)
    names = [f"case_{index}.nii.gz" for index in range(3)]
    content = {
        "name": "small",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def no_cases(root: Path) -> None:
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"training": []}))


def label_missing(root: Path) -> None:
    (root / "labelsTr" / "case_1.nii.gz").unlink()


def other_grid(root: Path) -> None:
    write(root / "labelsTr" / "case_1.nii.gz", np.ones((8, 9, 10), np.uint8), spacing=2.5)


def other_shape(root: Path) -> None:
    write(root / "labelsTr" / "case_1.nii.gz", np.ones((8, 9, 11), np.uint8))


def with_nan(root: Path) -> None:
    write(root / "imagesTr" / "case_1.nii.gz", np.full((8, 9, 10), np.nan, np.float32))


def empty_image(root: Path) -> None:
    write(root / "imagesTr" / "case_1.nii.gz", np.zeros((8, 9, 10), np.float32))


def unknown_label(root: Path) -> None:
    write(root / "labelsTr" / "case_1.nii.gz", np.full((8, 9, 10), 7, np.uint8))


def truncated(root: Path) -> None:
    path = root / "imagesTr" / "case_1.nii.gz"
    path.write_bytes(path.read_bytes()[:300])


def not_an_image(root: Path) -> None:
    (root / "imagesTr" / "case_1.nii.gz").write_bytes(gzip.compress(b"hello"))


def flat_image(root: Path) -> None:
    write(root / "imagesTr" / "case_1.nii.gz", np.ones((8, 9), np.float32))


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_cases, "listed under 'training' in dataset.json"),
        (label_missing, "labelsTr/case_1"),
        (other_grid, "case_1"),
        (other_shape, "case_1"),
        (with_nan, "NaN"),
        (empty_image, "same value"),
        (unknown_label, "7"),
        (truncated, "imagesTr/case_1"),
        (not_an_image, "imagesTr/case_1"),
        (flat_image, "imagesTr/case_1"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_data_set_is_refused_and_the_case_named(
    damage: Break, message: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(tmp_path / "data")
    damage(root)
    config = ["--config", "demo", f"output={tmp_path / 'run'}", "data.workers=0"]
    arguments = {
        "plan": ["plan", str(root), "--check-only", "--workers", "0"],
        "train": ["train", *config, f"data.root={root}"],
    }
    assert main(arguments[command]) == {"plan": 1, "train": 2}[command]
    printed = capsys.readouterr()
    assert message in {"plan": printed.out, "train": printed.err}[command]
    assert "Traceback" not in printed.err
    assert not list(tmp_path.glob("run/model*"))


def test_a_good_data_set_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_dataset(tmp_path / "data")
    out = tmp_path / "plan.json"
    assert main(["plan", str(root), "--workers", "0", "--out", str(out), "plan.token_stride=4"]) == 0
    printed = capsys.readouterr().out
    assert "token_stride          4: set by hand" in printed
    assert "With 2 patches and the network" in printed
    assert "a training step needs about" in printed
    assert printed.endswith(f"written: {out}\nwritten: {out.with_suffix('.png')}\n")
    assert json.loads(out.read_text())["reasons"]["token_stride"] == "set by hand"
    assert json.loads(out.read_text())["token_stride"] == 4
    assert main(["plan", str(root), "--workers", "0", "plan.token_strid=4", "--check-only"]) == 2
    assert "token_stride" in capsys.readouterr().err


def test_findings_that_are_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are printed, written to a file of findings only, and no error."""
    root = make_dataset(tmp_path / "data")
    (root / "imagesTr" / "scan.dcm.bak").touch()
    out, check = tmp_path / "found.json", ["plan", str(root), "--check-only", "--workers", "0"]
    for _ in range(2):  # findings replace findings
        assert main([*check, "--out", str(out)]) == 0
    assert "passed-over, 1 found" in capsys.readouterr().out
    assert "passed-over" in {finding["kind"] for finding in json.loads(out.read_text())["findings"]}
    assert main(["plan", str(root), "--workers", "0", "--out", str(tmp_path / "plan.json")]) == 0
    assert capsys.readouterr().out.count("passed-over, 1 found") == 1
    assert main([*check, "--out", str(tmp_path / "plan.json")]) == 2
    assert "holds no findings" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "nothing"), "--check-only"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "phantom", "plan", "evaluate"])
def test_an_output_folder_that_cannot_be_written_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(tmp_path / "data")
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    out = str(blocked / "out")
    config = "demo"
    labels = str(root / "labelsTr")
    arguments = {
        "train": ["train", "--config", config, f"data.root={root}", f"output={out}"],
        "phantom": ["phantom", out, "--train", "1", "--test", "0"],
        "plan": ["plan", str(root), "--workers", "0", "--out", out],
        "evaluate": ["evaluate", "--pred", labels, "--ref", labels, "--out", out],
    }
    assert main(arguments[command]) == 2
    assert str(blocked) in capsys.readouterr().err
