"""Which rule splits a data set, what is refused, and what is said on the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from volseg.config.schema import DataConfig
from volseg.data.split_rules import choose_all_splits, choose_split
from volseg.data.splits import make_splits, nnunet_splits
from volseg.errors import ConfigError, DataError
from volseg.io.datasets import Case, Dataset
from volseg.io.labels import make_label_map

NAMES = [f"p{number // 2}_s{number % 2}" for number in range(12)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two scans of each of six patients, who are not stated."""
    cases = tuple(Case(name, (tmp_path / f"{name}.nii",), tmp_path / "label.nii") for name in NAMES)
    return Dataset("Made", tmp_path, cases, ("CT",), make_label_map({"organ": 1}))


def stating(dataset: Dataset, **values: Mapping[str, Any]) -> Dataset:
    """The data set with patients or folds by case; the others have none."""
    cases = (replace(case, **{key: of.get(case.id) for key, of in values.items()}) for case in dataset.cases)
    return replace(dataset, cases=tuple(cases))


def patient(name: str) -> str:
    return name.split("_")[0]


PATIENTS = {name: patient(name) for name in NAMES}
FOLDS = {name: int(patient(name)[1:]) % 3 for name in NAMES if patient(name) != "p5"}


def test_by_case_if_nothing_is_known(dataset: Dataset) -> None:
    for fold, split in enumerate(make_splits(NAMES, 0)):
        found = choose_split(dataset, DataConfig(fold=fold), 1)
        assert (found["fold"], found["rule"]) == (fold, "five folds by case")
        assert {part: found[part] for part in ("train", "val")} == split


def test_scans_without_labels_change_nothing(dataset: Dataset) -> None:
    more = replace(dataset, unlabelled=(Case("p9_s0", (dataset.root / "x.nii",), None),))
    assert choose_split(more, DataConfig(), 0) == choose_split(dataset, DataConfig(), 0)


@pytest.mark.parametrize(("pattern", "says"), [(r"^(p\d)_", "data."), ("p.", "data."), (None, "as the data set")])
def test_patients_stay_together(pattern: str | None, says: str, dataset: Dataset) -> None:
    known = dataset if pattern else stating(dataset, patient=PATIENTS)
    held_out = []
    for fold in range(5):
        split = choose_split(known, DataConfig(fold=fold, patient_pattern=pattern), 0)
        assert split["rule"].startswith(f"five folds by patient ({says}")
        assert not {*map(patient, split["train"])} & {*map(patient, split["val"])}
        held_out += split["val"]
    assert sorted(held_out) == NAMES


def test_every_case_may_be_a_patient(dataset: Dataset) -> None:
    known = stating(dataset, patient=PATIENTS)
    alone = choose_split(known, DataConfig(patient_pattern=".+"), 0)
    assert alone["val"] == make_splits(NAMES, 0)[0]["val"]


@pytest.mark.parametrize("pattern", ["^p[0-4]", "(x)?_s"])
def test_names_without_a_patient_are_refused(pattern: str, dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"does not match(.|\n)*p5_s0(.|\n)*p5_s1"):
        choose_split(dataset, DataConfig(patient_pattern=pattern), 0)


def test_cases_without_a_patient_are_patients_of_their_own(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    known = stating(dataset, patient={name: of for name, of in PATIENTS.items() if of != "p5"})
    choose_split(known, DataConfig(), 0)
    assert "2 cases without a patient, counted as a patient each: p5_s0, p5_s1" in caplog.text


def test_the_folds_of_the_data_set_count(dataset: Dataset) -> None:
    known = stating(dataset, patient=PATIENTS, fold=FOLDS)
    split = choose_split(known, DataConfig(fold=2), 0)
    assert split["rule"] == "the folds that the data set states"
    assert split["val"] == [name for name in NAMES if FOLDS.get(name) == 2]
    assert split["train"] == [name for name in NAMES if FOLDS.get(name) != 2]  # p5 is always trained on
    with pytest.raises(ConfigError, match=r"no such fold(.|\n)*data\.fold=3(.|\n)*0, 1, 2"):
        choose_split(known, DataConfig(fold=3), 0)
    with pytest.raises(DataError, match="fold 0: 1 patient with cases both trained on and held out: p0"):
        choose_split(stating(known, patient=PATIENTS, fold={**FOLDS, "p0_s1": 1}), DataConfig(), 0)


def test_random_folds_in_place_of_stated_ones_are_said(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    (dataset.root / "splits_final.json").write_text("[]")
    split = choose_split(stating(dataset, fold=FOLDS), DataConfig(splits="random"), 0)
    assert split["val"] == make_splits(NAMES, 0)[0]["val"]
    assert "the folds that the data set states are not used: data.splits=random" in caplog.text
    assert "splits_final.json is not used" in caplog.text


def test_the_folds_of_nnunet_by_name(dataset: Dataset) -> None:
    split = choose_split(dataset, DataConfig(splits="nnunet", fold=4), 0)
    assert {part: split[part] for part in ("train", "val")} == nnunet_splits(NAMES)[4]
    with pytest.raises(DataError, match="with cases both trained on and held out"):
        choose_split(stating(dataset, patient=PATIENTS), DataConfig(splits="nnunet"), 0)


def test_a_file_counts_and_its_use_is_said(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    file = dataset.root / "splits_final.json"
    file.write_text(json.dumps([{"train": NAMES[4:], "val": NAMES[:2]}]))
    with caplog.at_level(logging.INFO):
        split = choose_split(dataset, DataConfig(splits=str(file)), 0)
    assert (split["train"], split["val"]) == (NAMES[4:], NAMES[:2])
    assert "split: the split file splits_final.json; fold 0 (the only one)" in caplog.text
    assert "in no part of fold 0: 2 cases: p1_s0, p1_s1" in caplog.text
    assert "is not used" not in caplog.text
    caplog.clear()
    file.write_text(json.dumps([{"train": NAMES[4:], "val": NAMES[:2]}, {"train": NAMES[4:], "val": NAMES[1:2]}]))
    assert [*choose_all_splits(dataset, DataConfig(splits=str(file)), 0)] == [0, 1]
    assert "in no part of fold 0: 2 cases: p1_s0, p1_s1" in caplog.text
    assert "in no part of fold 1: 3 cases: p0_s0, p1_s0, p1_s1" in caplog.text
    with pytest.raises(ConfigError, match="holds out no case"):
        choose_split(dataset, DataConfig(splits=str(file), fold="all"), 0)


def test_all_that_is_wrong_with_a_file_is_listed(dataset: Dataset) -> None:
    file = dataset.root / "s.json"
    good = {"train": NAMES[2:], "val": NAMES[:2]}
    wrong = [
        good,
        {"train": [*NAMES[2:], "new"], "val": NAMES[:2]},
        {"train": NAMES, "val": NAMES[:2]},
        {"train": [*NAMES[2:], NAMES[2]], "val": NAMES[:2]},
        {"train": NAMES[1:], "val": NAMES[:1]},
        {"train": NAMES, "val": []},
        {"train": [], "val": NAMES},
    ]
    file.write_text(json.dumps(wrong))
    with pytest.raises(DataError) as error:
        choose_split(stating(dataset, patient=PATIENTS), DataConfig(splits=str(file)), 0)
    assert str(error.value).splitlines()[3:9] == [
        "    fold 1: 1 case not in the data set: new",
        "    fold 2: 2 cases both trained on and held out: p0_s0, p0_s1",
        "    fold 3: 1 case listed twice: p1_s0",
        "    fold 4: 1 patient with cases both trained on and held out: p0",
        "    fold 5: no held-out cases",
        "    fold 6: no training cases",
    ]


def test_all_cases_are_trained_on(dataset: Dataset) -> None:
    split = choose_split(stating(dataset, fold=FOLDS), DataConfig(fold="all"), 0)
    assert (split["fold"], split["train"], split["val"]) == ("all", NAMES, [])


def test_shots_are_taken_from_the_training_cases_by_the_runs_seed(dataset: Dataset) -> None:
    whole = choose_split(dataset, DataConfig(patient_pattern="p."), 0)
    few = [choose_split(dataset, DataConfig(patient_pattern="p.", shots=3), seed) for seed in range(4)]
    assert all({*split["train"]} < {*whole["train"]} and split["val"] == whole["val"] for split in few)
    assert len({tuple(split["train"]) for split in few}) > 1
    assert len({split["sha256"] for split in [whole, *few]}) > 2


def test_all_splits_are_those_of_the_folds_and_none_twice(dataset: Dataset) -> None:
    splits = choose_all_splits(dataset, DataConfig(), 0)
    assert splits == {fold: choose_split(dataset, DataConfig(fold=fold), 0) for fold in range(5)}
    few = replace(dataset, cases=dataset.cases[:3])
    assert list(choose_all_splits(few, DataConfig(), 0)) == [0, 1, 2]  # folds 3 and 4 repeat them
    held_out = [name for split in choose_all_splits(few, DataConfig(), 0).values() for name in split["val"]]
    assert sorted(held_out) == NAMES[:3]
