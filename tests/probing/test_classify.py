"""Folds, choice of settings, and classification of made features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from volseg.errors import DataError
from volseg.probing.classify import METHODS, Fold, cross_predict, inner_folds, make_folds
from volseg.probing.labels import Labels, Sample

pytest.importorskip("sklearn")


def made_labels(patients: list[int], truth: list[int], parts: list[str] | None = None) -> Labels:
    samples = tuple(
        Sample(index + 2, f"c{index}", str(label), None, str(patient), None if parts is None else parts[index])
        for index, (patient, label) in enumerate(zip(patients, truth, strict=True))
    )
    split_by = None if parts is None else "split" if "test" in parts else "fold"
    return Labels(Path("labels.csv"), samples, split_by)


def clusters(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features around the axes, a class at each, and the classes."""
    truth = np.arange(count) % classes
    return np.eye(8)[truth] * 5 + np.random.default_rng(seed).normal(size=(count, 8)), truth


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [2, 3])
def test_separable_features_are_classified(method: str, classes: int) -> None:
    features, truth = clusters(30, classes)
    patients = np.arange(30)
    folds = make_folds(made_labels(patients.tolist(), truth.tolist()), truth, patients, 0)
    make, choices, _ = METHODS[method]
    outcome = cross_predict(make, choices, features, truth, patients, folds, classes=classes, seed=0)

    assert (outcome.probabilities.argmax(axis=1) == truth).mean() > 0.95
    np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1)
    assert list(outcome.chosen) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_classes_does_not_matter(method: str) -> None:
    features, truth = clusters(60, 3)
    features += np.random.default_rng(1).normal(0, 4, features.shape)  # far from separable: votes would be tied
    folds = [Fold("0", np.arange(30), np.arange(30, 60)), Fold("1", np.arange(30, 60), np.arange(30))]
    make, choices, _ = METHODS[method]
    order = np.array([2, 0, 1])
    one, other = (
        cross_predict(make, (choices[2],), features, labels, np.arange(60), folds, classes=3, seed=0).probabilities
        for labels in (truth, order[truth])
    )

    np.testing.assert_array_equal(order[one.argmax(axis=1)], other.argmax(axis=1))
    assert one.argmax(axis=1).tolist() != truth.tolist()


def test_folds_share_no_patient_and_test_each_sample_once() -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(25, size=120)
    truth = patients % 3
    folds = make_folds(made_labels(patients.tolist(), truth.tolist()), truth, patients, 3)

    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(120))
    for fold in folds:
        assert not set(patients[fold.train]) & set(patients[fold.test])
        assert set(truth[fold.test]) == {0, 1, 2}
        for train, test in inner_folds(truth[fold.train], patients[fold.train], 3):
            known = patients[fold.train]
            assert not set(known[train]) & set(known[test])


def test_seeds_of_more_than_32_bits_make_folds() -> None:
    patients = np.arange(20)
    folds = make_folds(made_labels(patients.tolist(), (patients % 2).tolist()), patients % 2, patients, 2**40 + 1)
    assert len(folds) == 5


class Spy:
    """A classifier that records which samples it was given."""

    seen: ClassVar[list[tuple[float, set[int], set[int]]]] = []

    def __init__(self, setting: float) -> None:
        self.setting = setting

    def fit(self, features: np.ndarray, truth: np.ndarray) -> Spy:
        self.known = set(features[:, 0].astype(int))
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        asked = set(features[:, 0].astype(int))
        Spy.seen.append((self.setting, self.known, asked))
        truth = features[:, 1] if self.setting == 7 else 1 - features[:, 1]
        return np.stack([1 - truth, truth], axis=1)


def test_the_setting_is_chosen_without_the_test_part() -> None:
    Spy.seen = []
    truth = np.arange(20) % 2
    features = np.stack([np.arange(20), truth], axis=1).astype(float)
    fold = Fold("test", np.arange(12), np.arange(12, 20))
    outcome = cross_predict(Spy, (3.0, 7.0), features, truth, np.arange(20), [fold], classes=2, seed=0)

    assert outcome.chosen == {"test": 7.0}
    *inner, last = Spy.seen
    assert last == (7.0, set(range(12)), set(range(12, 20)))
    assert {setting for setting, *_ in inner} == {3.0, 7.0}
    assert all(known | asked <= set(range(12)) and not known & asked for _, known, asked in inner)
    assert np.isnan(outcome.probabilities[:12]).all()


def test_the_split_of_the_table_is_taken() -> None:
    truth = [0, 1] * 4
    split = make_folds(
        made_labels(list(range(8)), truth, ["train"] * 6 + ["test"] * 2), np.array(truth), np.arange(8), 0
    )
    assert [(fold.name, fold.test.tolist()) for fold in split] == [("test", [6, 7])]

    folds = make_folds(made_labels(list(range(8)), truth, ["10", "10", *"227722"]), np.array(truth), np.arange(8), 0)
    assert [(fold.name, fold.test.tolist()) for fold in folds] == [("2", [2, 3, 6, 7]), ("7", [4, 5]), ("10", [0, 1])]


@pytest.mark.parametrize(
    ("patients", "truth", "parts", "texts"),
    [
        (list(range(12)), [0] * 8 + [1] * 4, None, ("too few patients for the five folds", "1: 4", "at least 5")),
        ([0, 1, 2, 3, 4, 5, 5, 5, 5, 5], [0] * 5 + [1] * 5, None, ("too few patients", "1: 1")),
        (list(range(6)), [0, 0, 0, 0, 1, 1], ["train"] * 5 + ["test"], ("training part of test", "1: 1")),
        (list(range(4)), [0, 1, 0, 1], ["train"] * 4, ("part of the split is empty",)),
    ],
)
def test_classes_need_patients(patients: list[int], truth: list[int], parts: Any, texts: tuple[str, ...]) -> None:
    labels = made_labels(patients, truth, parts)
    if parts is not None and "test" not in parts:
        labels = Labels(labels.file, labels.samples, "split")
    with pytest.raises(DataError) as raised:
        make_folds(labels, np.array(truth), np.array(patients), 0)
    for text in (*texts, "labels.csv"):
        assert text in str(raised.value)
