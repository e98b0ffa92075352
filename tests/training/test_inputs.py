"""Plan, split and data of a run are those with which it began, or the run is not resumed."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.made.datasets import save_nifti, write_dataset
from tests.made.trained import PLAN
from volseg.config.schema import Config, DataConfig
from volseg.data.split_rules import choose_split
from volseg.errors import ConfigError, DataError
from volseg.io.datasets import read_dataset
from volseg.io.json_files import write_json
from volseg.planning.plan import Plan
from volseg.preprocessing.cache import cache_dataset
from volseg.training.inputs import read_inputs, write_inputs

CONFIG = Config(data=DataConfig(workers=0))
LABELS = ("background", "organ", "lesion")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(4, 5, 6)).astype(np.float32) for _ in range(6)]
    labels = [rng.integers(0, 3, (4, 5, 6)).astype(np.uint8) for _ in range(6)]
    return write_dataset(tmp_path / "data", images, labels, names=LABELS)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    """The files of a run that began with this data."""
    dataset, folder = read_dataset(data), tmp_path / "run"
    values = {**PLAN.to_dict(), "labels": dataset.labels}
    write_json(folder / "plan.json", values)
    write_json(folder / "splits.json", choose_split(dataset, CONFIG.data, CONFIG.seed))
    write_inputs(folder, dataset, workers=0)
    return folder


def test_unchanged_inputs_are_those_of_the_run(data: Path, run: Path) -> None:
    dataset, plan, split = read_inputs(run, read_dataset(data), CONFIG)
    assert [case.id for case in dataset.cases] == [f"c{number}" for number in range(6)]
    assert plan.spacing_mm == PLAN.spacing_mm
    assert split == json.loads((run / "splits.json").read_text())


def test_a_moved_data_set_is_the_same(data: Path, run: Path) -> None:
    moved = shutil.copytree(data, data.parent / "elsewhere")  # with other times
    shutil.rmtree(data)
    dataset, _, _ = read_inputs(run, read_dataset(moved), CONFIG)
    assert dataset.root == moved


def test_changed_and_missing_cases_are_named(data: Path, run: Path) -> None:
    save_nifti(data / "imagesTr" / "c1.nii.gz", np.zeros((4, 5, 6), np.float32))
    save_nifti(data / "labelsTr" / "c4.nii.gz", np.zeros((4, 5, 6), np.uint8))
    description = json.loads((data / "dataset.json").read_text())
    description["training"] = description["training"][:5]
    (data / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="1 missing: c5; 2 changed: c1, c4"):
        read_inputs(run, read_dataset(data), CONFIG)


def test_cases_that_were_added_are_left_out_and_named(data: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    description = json.loads((data / "dataset.json").read_text())
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(data / folder / "c0.nii.gz", data / folder / "new.nii.gz")
    description["training"].append({"image": "imagesTr/new.nii.gz", "label": "labelsTr/new.nii.gz"})
    (data / "dataset.json").write_text(json.dumps(description))
    with caplog.at_level(logging.WARNING):
        dataset, _, _ = read_inputs(run, read_dataset(data), CONFIG)
    assert "new" not in [case.id for case in dataset.cases]
    assert "left out, because new since the run began: 1 labelled case: new" in caplog.text


def test_other_labels_are_refused(data: Path, run: Path) -> None:
    text = (data / "dataset.json").read_text()
    (data / "dataset.json").write_text(text.replace("lesion", "cyst"))
    with pytest.raises(DataError, match=r"labels(.|\n)*cyst: 2(.|\n)*lesion: 2"):
        read_inputs(run, read_dataset(data), CONFIG)


def test_other_folds_are_refused(data: Path, run: Path) -> None:
    description = json.loads((data / "dataset.json").read_text())
    held_out = json.loads((run / "splits.json").read_text())["val"]
    for number, entry in enumerate(description["training"]):
        entry["fold"] = 1 if f"c{number}" in held_out else 0
    (data / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"6 cases in another part, by the folds that the(.|\n)*by case"):
        read_inputs(run, read_dataset(data), CONFIG)


@pytest.mark.parametrize("name", ["plan.json", "splits.json", "inputs.json"])
def test_a_file_of_the_run_is_missing(name: str, data: Path, run: Path) -> None:
    (run / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name} of the run is missing(.|\n)*hint: restore"):
        read_inputs(run, read_dataset(data), CONFIG)


def test_an_edited_plan_is_noticed(data: Path, run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    write_json(run / "plan.json", {**plan, "mirror_axes": [0]})
    with pytest.raises(ConfigError, match=r"the plan was changed(.|\n)*plan\.json"):
        read_inputs(run, read_dataset(data), CONFIG)


@pytest.mark.parametrize("content", [[], {"cases": []}, {"plan_sha256": "a"}, {"cases": {}, "plan_sha256": 3}])
def test_a_record_of_another_form_is_refused(content: object, data: Path, run: Path) -> None:
    write_json(run / "inputs.json", content)
    with pytest.raises(ConfigError, match=r"not the record(.|\n)*inputs\.json"):
        read_inputs(run, read_dataset(data), CONFIG)


def test_cases_from_the_cache_are_recorded_as_if_they_were_hashed_again(run: Path, data: Path, tmp_path: Path) -> None:
    dataset, before = read_dataset(data), (run / "inputs.json").read_text()
    cached = cache_dataset(dataset.cases[1:], Plan.load(run / "plan.json"), tmp_path / "cache")
    write_inputs(run, dataset, 0, cached)
    assert (run / "inputs.json").read_text() == before
