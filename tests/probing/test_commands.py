"""The commands ``features`` and ``probe`` on made scans, by configuration and by model."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

import volseg
from tests.made.datasets import save_nifti
from tests.made.trained import MODEL, PLAN, make_scan, metadata
from volseg.cli.main import main
from volseg.config.load import load_config
from volseg.config.schema import ModelConfig
from volseg.errors import DataError, ModelFileError, OutputError
from volseg.io.cases import list_images
from volseg.io.model_file import save_model
from volseg.io.volumes import read_volume
from volseg.models.build import build_model
from volseg.models.encoders.slices import resize_slices
from volseg.preprocessing.preprocess import preprocess_image
from volseg.probing.pca import fit_pca
from volseg.probing.scans import ScanSet, scans_of_config, scans_of_model

pytest.importorskip("sklearn")
ENCODER = ["model.encoder=tiny", "model.weights=random", "device=cpu", "data.workers=0"]
AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])


def write_scan(file: Path, *, bright: bool, seed: int) -> None:
    """Write (R, A, S) of 24 x 32 x 6 voxels; a bright one has a square in all slices."""
    values = np.random.default_rng(seed).normal(100, 10, (24, 32, 6))
    values[4:12, 10:20] += 400 if bright else 0
    values[:, 30:] = 0
    save_nifti(file, values.astype(np.float32), AFFINE)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probing") / "scans"
    for number in range(10):
        write_scan(folder / f"s{number}.nii.gz", bright=bool(number % 2), seed=number)
    return folder


@pytest.fixture(scope="module")
def labels(scans: Path) -> Path:
    file = scans.parent / "labels.csv"
    file.write_text("case,label\n" + "".join(f"s{n},{'bright' if n % 2 else 'plain'}\n" for n in range(10)))
    return file


def by_config(scans: Path, cache: Path, *overrides: str) -> ScanSet:
    config = load_config(None, [*ENCODER, *overrides])
    with scans_of_config(config, list_images(scans), cache) as found:
        return found


def test_probe_separates_scans(scans: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code = main(["probe", "-i", str(scans), "--labels", str(labels), "-o", str(out), "--slices", "2", *ENCODER])

    assert code == 0
    assert "| knn" in capsys.readouterr().out
    summary = json.loads((out / "probe.json").read_text())
    assert summary["methods"]["knn"]["auc"]["mean"] == 1
    assert summary["methods"]["linear"]["accuracy"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert summary["feature"] == "mean over at most 2 evenly spaced slices of the class token"
    assert summary["classes"] == {"bright": 5, "plain": 5}
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert [(row["case"], row["label"], row["linear"]) for row in rows[:2]] == [
        ("s0", "plain", "plain"),
        ("s1", "bright", "bright"),
    ]
    assert (out / "probe.md").read_text().startswith("| method")


def test_the_table_of_labels_is_not_replaced(scans: Path, labels: Path, tmp_path: Path) -> None:
    copy = tmp_path / "predictions.csv"
    copy.write_text(labels.read_text())

    with pytest.raises(OutputError, match="would replace an input"):
        volseg.probe(scans, copy, tmp_path, overrides=ENCODER)
    assert copy.read_text() == labels.read_text()


def test_probe_of_slices_is_grouped_by_scan(scans: Path, tmp_path: Path) -> None:
    file = tmp_path / "slices.csv"
    rows = [f"s{n},{k},{'lower' if k < 3 else 'upper'}" for n in range(10) for k in (0, 5)]
    file.write_text("\n".join(["case,slice,label", *rows]))
    result = volseg.probe(scans, file, tmp_path / "out", overrides=ENCODER)
    parts: dict[str, set[str]] = {}
    for row in csv.DictReader((tmp_path / "out/predictions.csv").read_text().splitlines()):
        parts.setdefault(row["case"], set()).add(row["fold"])

    assert result.summary["feature"] == "class token"
    assert result.summary["tested"] == 20
    assert all(len(folds) == 1 for folds in parts.values())


def test_features_writes_a_picture_of_each_scan(scans: Path, tmp_path: Path) -> None:
    out, listing = tmp_path / "out", tmp_path / "two.txt"
    listing.write_text(f"{scans / 's0.nii.gz'}\n{scans / 's1.nii.gz'}\n")
    for fit in ("all", "scan"):
        assert main(["features", "-i", str(listing), "-o", str(out), "--slices", "3", "--fit", fit, *ENCODER]) == 0
        record = json.loads((out / "features.json").read_text())
        explained = [record["scans"][name]["explained_variance"] for name in ("s0", "s1")]
        assert (explained[0] == explained[1]) == (fit == "all")
        assert record["scans"]["s0"]["slices"] == [1, 3, 5]
    for name in ("s0", "s1"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_tokens_are_those_of_the_slices_as_pretraining_prepares_them(scans: Path, tmp_path: Path) -> None:
    found = by_config(scans, tmp_path, "model.adjacent_slices=1")
    scan = found.read(found.cases[1])
    (tokens,) = found.encoder.tokens(scan, [2])
    image = torch.from_numpy(scan.image.slab(2, 3)[:, 0])[None]  # (1, 1, 32, 24): P rows, L columns
    classes, patches = found.encoder.slices.vit.class_and_patch_tokens(resize_slices(image, 8, 14))

    assert scan.image.shape == (6, 32, 24)
    assert scan.image.trace.target.orientation == "IPL"
    np.testing.assert_allclose(tokens.class_token, classes[0].detach(), atol=1e-5)
    np.testing.assert_allclose(tokens.patches.reshape(192, -1).T, patches[0].detach(), atol=1e-5)


@pytest.mark.parametrize("cropped", [False, True])
def test_slices_of_the_file_are_found(tmp_path: Path, cropped: bool) -> None:
    values = np.zeros((40, 40, 8), np.float32)
    box = np.s_[10:30, 10:30, 2:7] if cropped else np.s_[:]
    values[box] = np.random.default_rng(0).normal(100, 10, values[box].shape)
    for k in range(8):
        values[..., k][values[..., k] != 0] += 100 * k
    save_nifti(tmp_path / "scans" / "a.nii.gz", values, AFFINE)
    found = by_config(tmp_path / "scans", tmp_path / "cache")
    scan = found.read(found.cases[0])
    means = [float(scan.image.slab(index, index + 1).mean()) for index in range(scan.count)]

    assert scan.file_slices == 8
    assert sorted(means, reverse=True) == means  # from superior to inferior, and the file from inferior to superior
    if cropped:
        assert [scan.of_file(k) for k in range(8)] == [None, None, 4, 3, 2, 1, 0, None]
    else:
        assert [scan.of_file(k) for k in range(8)] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_a_model_prepares_scans_by_its_plan(tmp_path: Path) -> None:
    model, scan_file = tmp_path / "model.safetensors", tmp_path / "scans" / "a.nii.gz"
    torch.manual_seed(0)
    network = build_model(ModelConfig(**MODEL), PLAN)
    save_model(model, network.state_dict(), metadata(PLAN))
    values, _, grid = make_scan(0)
    save_nifti(scan_file, values, grid.affine)
    found = scans_of_model(model, scan_file.parent, "cpu")
    scan = found.read(found.cases[0])
    prepared = preprocess_image(read_volume(scan_file), PLAN)[0].data
    (tokens,) = found.encoder.tokens(scan, [3])

    np.testing.assert_allclose(scan.image.slab(3, 4), prepared[:, 3:4], atol=1e-5)
    whole = network.encode(torch.from_numpy(prepared[None, :, 2:5]))[-1]  # (1, E, 1, h, w)
    _, rows, columns = tokens.patches.shape
    np.testing.assert_allclose(tokens.patches, whole.detach()[0, :, 0, :rows, :columns], atol=1e-4)
    assert main(["features", "-i", str(scan_file), "-m", str(model), "-o", str(tmp_path / "out"), "device=cpu"]) == 0


def test_a_model_without_an_encoder_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    control = ModelConfig(**{**MODEL, "encoder": "identity", "weights": None})
    described = deepcopy(metadata(PLAN))
    described["config"]["model"].update(encoder="identity", weights=None)
    save_model(model, build_model(control, PLAN).state_dict(), described)
    save_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32))

    with pytest.raises(ModelFileError, match="no slice encoder"):
        volseg.features(tmp_path / "a.nii.gz", tmp_path / "out", model=model)


def test_channels_and_square_pixels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 10, (12, 30, 7, 2)).astype(np.float32)
    save_nifti(tmp_path / "scans" / "a.nii.gz", values, np.diag([2.0, 1.0, 3.0, 1.0]))
    found = by_config(tmp_path / "scans", tmp_path / "cache")
    scan = found.read(found.cases[0])
    (tokens,) = found.encoder.tokens(scan, [0])

    assert scan.image.slab(0, 7).shape == (2, 7, 30, 24)  # slices along S, rows along P, columns along L
    assert tokens.patches.shape == (192, 4, 3)

    save_nifti(tmp_path / "scans" / "b.nii.gz", values[..., 0], np.diag([2.0, 1.0, 3.0, 1.0]))
    with pytest.raises(DataError, match=r"different numbers of channels(.|\n)*b.nii.gz"):
        by_config(tmp_path / "scans", tmp_path / "cache")


def test_neighbours_are_repeated_at_the_ends(scans: Path, tmp_path: Path) -> None:
    found = by_config(scans, tmp_path)
    scan = found.read(found.cases[0])
    first, last = scan.stack(0, 1)[0, 0], scan.stack(5, 1)[0, 0]

    np.testing.assert_array_equal(first, scan.image.slab(0, 2)[0][[0, 0, 1]])
    np.testing.assert_array_equal(last, scan.image.slab(4, 6)[0][[0, 1, 1]])
    assert found.encoder.record["adjacent_slices"] == 3


def test_equal_encoders_of_equal_seeds(scans: Path, tmp_path: Path) -> None:
    one, same, other = (
        found.encoder.tokens(found.read(found.cases[0]), [0])[0].patches
        for found in (by_config(scans, tmp_path, f"seed={seed}") for seed in (1, 1, 2))
    )

    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert fit_pca([one]).components.shape == (3, 192)
