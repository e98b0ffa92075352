"""The Python interface does what the commands do, and tells its progress."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

import volseg
from volseg.config.load import load_config
from volseg.errors import ConfigError, DataError
from volseg.io.volumes import read_mask
from volseg.phantom import write_phantoms

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = {
    "device": "cpu",
    "data": {"workers": 0},
    "model": {"encoder": "identity", "features": 4},
    "plan": {"token_stride": 8, "patch_size": [8, 48, 48]},
    "train": {"max_steps": 2, "batch_size": 1, "validate_every": 2, "validate_cases": 1},
}
Told = list[tuple[str, int, int | None]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 3, count_test=1)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[volseg.api.TrainingResult, Told]:
    told: Told = []
    output = tmp_path_factory.mktemp("run") / "run"
    overrides = [f"data.root={data}", f"output={output}"]
    return volseg.train(SMALL, overrides, progress=lambda *at: told.append(at)), told


def test_train_returns_model_and_scores_and_tells_every_stage(run: tuple[volseg.api.TrainingResult, Told]) -> None:
    result, told = run
    assert result.model_file == result.folder / "model.safetensors"
    assert result.scores.exit_code == 0
    assert list(dict.fromkeys(stage for stage, *_ in told)) == [
        "fingerprint",
        "preprocess",
        "train",
        "predict",
        "evaluate",
    ]
    assert [at for at in told if at[0] == "train"] == [("train", 1, 2), ("train", 2, 2)]
    assert [path.name for path in result.scores.files[:3]] == ["cases.csv", "scores.json", "scores.md"]
    assert all(path.is_file() for path in result.scores.files)


def test_predict_evaluate_and_load_agree(
    run: tuple[volseg.api.TrainingResult, Told], data: Path, tmp_path: Path
) -> None:
    model = run[0].model_file
    told: Told = []
    summary = volseg.predict(
        model,
        data / "imagesTs",
        tmp_path / "masks",
        device="cpu",
        max_memory="2GB",
        progress=lambda *at: told.append(at),
    )
    assert (summary.count("done"), summary.count("failed")) == (1, 0)
    assert told == [("predict", 1, 1)]
    (scan,) = (data / "imagesTs").iterdir()
    mask = volseg.load(model, "cpu").predict(scan)
    np.testing.assert_array_equal(read_mask(tmp_path / "masks" / scan.name).labels, mask.labels)
    again = volseg.predict(volseg.load(model, "cpu"), scan, tmp_path / "masks", device="cpu", max_memory=2 * 10**9)
    assert again.count("skipped") == 1
    result = volseg.evaluate(tmp_path / "masks", data / "labelsTs", dataset=data / "dataset.json")
    assert result.files == ()
    assert result.evaluation.cases == (scan.name.removesuffix(".nii.gz"),)
    assert result.summary["methods"]["masks"]["headline"]["dice"]["mean"] is not None
    assert "| liver " in result.table


def test_a_missing_prediction_is_told_by_the_exit_code(data: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    names = sorted(path.name for path in (data / "labelsTr").iterdir())
    shutil.copy(data / "labelsTr" / names[0], tmp_path / "masks")
    result = volseg.evaluate({"half": tmp_path / "masks"}, data / "labelsTr", dataset=data / "dataset.json")
    assert result.exit_code == 1
    assert volseg.evaluate(tmp_path / "masks", data / "labelsTr", cases=[names[0][:-7]]).exit_code == 0


def test_plan_takes_overrides_as_a_mapping_or_as_text(data: Path, tmp_path: Path) -> None:
    told: Told = []
    plan = volseg.plan(
        data, {"token_stride": 8}, workers=0, out=tmp_path / "p.json", progress=lambda *a: told.append(a)
    )
    assert plan.token_stride == 8
    assert plan == volseg.plan(data, ["plan.token_stride=8"], workers=0)
    assert plan == type(plan).load(tmp_path / "p.json")
    assert told == [("fingerprint", n, 4) for n in (1, 2, 3, 4)]  # the test scan, too
    network = ["model.encoder=identity", "model.weights=random"]
    on_gpu = volseg.plan(data, ["device=cuda", *network], workers=0)
    assert "8 GB, the default on a GPU" in on_gpu.reasons["batch_size"]
    assert "the default on a GPU" not in volseg.plan(data, ["device=cpu", *network], workers=0).reasons["batch_size"]
    with pytest.raises(ConfigError, match=r"did you mean plan\.token_stride"):
        volseg.plan(tmp_path / "no data", {"token_strid": 8})
    with pytest.raises(DataError, match="does not exist"):
        volseg.plan(tmp_path / "no data")


def test_a_configuration_as_file_mapping_or_object(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {max_minutes: 5}\nmodel: {weights: random}\n", encoding="utf-8")
    from_file = load_config(tmp_path / "c.yaml", ["train.lr=0.1"])
    mapping = {"train": {"max_minutes": 5}, "model": {"weights": "random"}}
    assert load_config(mapping, ["train.lr=0.1"]) == from_file == load_config(from_file)
    assert load_config(from_file, ["train.max_steps=3"]).train.max_minutes is None


def seg_layout(data: Path, root: Path, kind: str) -> Path:
    """The phantoms with labels of other names: in one folder, one per case, or beside drafts with the images' names."""
    pairs = []
    for image in sorted((data / "imagesTr").iterdir()):
        label = data / "labelsTr" / image.name
        case = image.name.removesuffix(".nii.gz")
        new_image = root / ("imagesTr" if kind != "folders" else case) / image.name
        new_label = root / ("labelsTr" if kind != "folders" else case) / f"{case}_final.nii.gz"
        for source, target in ((image, new_image), (label, new_label)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        if kind == "drafts":
            draft = nibabel.load(label)
            nibabel.save(
                nibabel.Nifti1Image(np.asarray(draft.dataobj) * 0 + 1, draft.affine), root / "labelsTr" / image.name
            )
        pairs.append({"image": str(new_image.relative_to(root)), "label": str(new_label.relative_to(root))})
    description = (data / "dataset.json").read_text(encoding="utf-8")
    (root / "dataset.json").write_text(json.dumps({**json.loads(description), "training": pairs}), encoding="utf-8")
    return root


@pytest.mark.parametrize("kind", ["names", "folders", "drafts"])
def test_training_scores_the_listed_labels(
    kind: str, data: Path, tmp_path: Path, run: tuple[volseg.api.TrainingResult, Told]
) -> None:
    """The scores are those of the same cases in the usual layout."""
    root = seg_layout(data, tmp_path / "data", kind)
    result = volseg.train(SMALL, [f"data.root={root}", f"output={tmp_path / 'run'}"])
    expected = run[0].scores.evaluation
    assert result.scores.exit_code == 0
    assert result.scores.evaluation.cases == expected.cases
    for metric in ("dice", "ref_voxels"):
        np.testing.assert_array_equal(result.scores.evaluation.values("run", metric), expected.values("run", metric))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: volseg.plan(None), "dataset"),
        (lambda: volseg.plan("d", "plan.token_stride=4"), "overrides"),
        (lambda: volseg.plan("d", [4]), "overrides"),
        (lambda: volseg.train(3), "config"),
        (lambda: volseg.train({}, [3]), "overrides"),
        (lambda: volseg.train({}, "data.fold=1"), "overrides"),
        (lambda: volseg.predict(None, "s", "o"), "model"),
        (lambda: volseg.predict("m", 3, "o"), "scans"),
        (lambda: volseg.predict("m", "s", None), "output"),
        (lambda: volseg.evaluate(3), "pred"),
        (lambda: volseg.evaluate("p", 3), "ref"),
        (lambda: volseg.load(None), "model"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(ConfigError, match=f"the argument {argument} has the wrong type"):
        call()
