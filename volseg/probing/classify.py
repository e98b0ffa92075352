"""Nearest neighbours and logistic regression on frozen features, on folds that share no patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import DataError
from volseg.extras import import_extra
from volseg.probing.labels import Labels

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
FOLDS = 5
INNER_FOLDS = 5
NEIGHBOURS = (20, 10, 5, 3, 1)
"""Choices of k; the first of equally good ones is taken, which is the smoothest."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Choices of C, the inverse of the L2 regularisation; the first of equally good ones is taken."""
ITERATIONS = 2000
TEMPERATURE = 0.07
"""Cosine over which the vote of a neighbour falls by the factor e."""


@dataclass(frozen=True)
class Fold:
    """Samples in two parts that share no patient.

    Attributes:
        name: Its number, or ``test``.
        train: Indices of the samples that are trained on.
        test: Indices of the samples that are predicted.
    """

    name: str
    train: Ints
    test: Ints


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one method for the samples of all test parts.

    Attributes:
        probabilities: ``(N, K)``; NaN for samples in no test part.
        chosen: Fold -> the value that its inner folds chose.
    """

    probabilities: Array
    chosen: dict[str, float]


def check_library() -> None:
    """Check that scikit-learn is installed.

    Raises:
        MissingExtraError: It is not.
    """
    import_extra("sklearn", "probe", "volseg probe")


def make_folds(labels: Labels, truth: Ints, patients: Ints, seed: int) -> list[Fold]:
    """Return the folds that the table states, or else five, stratified by class and grouped by patient.

    Args:
        labels: The table.
        truth: ``(N,)`` class numbers.
        patients: ``(N,)`` numbers of the patients.
        seed: Seed of the folds.

    Raises:
        DataError: A class has too few patients, in all or in the training part of a fold.
    """
    parts = np.array([sample.part for sample in labels.samples])
    every = np.arange(len(truth))
    if labels.split_by == "split":
        folds = [Fold("test", every[parts == "train"], every[parts == "test"])]
    elif labels.split_by == "fold":
        names = sorted(set(parts.tolist()), key=int)
        folds = [Fold(name, every[parts != name], every[parts == name]) for name in names]
    else:
        _check_patients(labels, truth, patients, every, FOLDS, "the five folds")
        split = _grouped_folds(FOLDS, truth, patients, seed)
        folds = [Fold(str(number), train, test) for number, (train, test) in enumerate(split)]
    for fold in folds:
        if not len(fold.train) or not len(fold.test):
            found = f"{fold.name}: {len(fold.train)} rows to train on, {len(fold.test)} to test"
            raise DataError("a part of the split is empty", file=labels.file, found=found, expected="rows in both")
        _check_patients(labels, truth, patients, fold.train, 2, f"the training part of {fold.name}")
    return folds


def _check_patients(labels: Labels, truth: Ints, patients: Ints, part: Ints, least: int, where: str) -> None:
    """Check that each class has enough patients in a part."""
    counts = {
        name: len(set(patients[part][truth[part] == number].tolist())) for number, name in enumerate(labels.classes)
    }
    few = [f"{name}: {count}" for name, count in counts.items() if count < least]
    if few:
        raise DataError(
            f"classes have too few patients for {where}",
            file=labels.file,
            found=", ".join(few),
            expected=f"at least {least} patients (or scans, without a column patient) of each class",
            hint="merge classes, leave out the rows of rare ones, or state a column fold or split",
        )


def _grouped_folds(count: int, truth: Ints, patients: Ints, seed: int) -> Iterator[tuple[Ints, Ints]]:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed % 2**32)  # scikit-learn takes 32 bits
    yield from folds.split(np.zeros((len(truth), 1)), truth, patients)


def inner_folds(truth: Ints, patients: Ints, seed: int) -> list[tuple[Ints, Ints]]:
    """Return folds of a training part: five, or as many as the rarest class has patients."""
    rarest = min(len(set(patients[truth == number].tolist())) for number in set(truth.tolist()))
    return list(_grouped_folds(min(INNER_FOLDS, rarest), truth, patients, seed))


def cross_predict(
    make: Callable[[Any], Any],
    choices: Sequence[float],
    features: Array,
    truth: Ints,
    patients: Ints,
    folds: Sequence[Fold],
    *,
    classes: int,
    seed: int,
) -> Predictions:
    """Predict each test part with a model of its training part, whose setting inner folds of that part choose.

    Args:
        make: Makes an untrained scikit-learn classifier from a setting.
        choices: Settings; of those with the best balanced accuracy over the inner folds the first is taken.
        features: ``(N, E)``.
        truth: ``(N,)`` class numbers.
        patients: ``(N,)`` numbers of the patients.
        folds: The folds.
        classes: Number K of classes.
        seed: Seed of the inner folds.
    """
    probabilities, chosen = np.full((len(truth), classes), np.nan), {}
    for fold in folds:
        known, labels = features[fold.train], truth[fold.train]
        inner = inner_folds(labels, patients[fold.train], seed)
        scores = [_inner_score(make, choice, known, labels, inner, classes) for choice in choices]
        chosen[fold.name] = choices[int(np.argmax(scores))]
        model = make(chosen[fold.name]).fit(known, labels)
        probabilities[fold.test] = _probabilities(model, features[fold.test], classes)
    return Predictions(probabilities, chosen)


def _inner_score(
    make: Callable[[Any], Any],
    choice: float,
    features: Array,
    truth: Ints,
    folds: Sequence[tuple[Ints, Ints]],
    classes: int,
) -> float:
    """Return the balanced accuracy of a setting over the inner folds; -1 where it cannot be used."""
    from sklearn.metrics import balanced_accuracy_score

    if isinstance(choice, int) and any(choice > len(train) for train, _ in folds):
        return -1.0
    predicted = np.empty_like(truth)
    for train, test in folds:
        model = make(choice).fit(features[train], truth[train])
        predicted[test] = _probabilities(model, features[test], classes).argmax(axis=1)
    return float(balanced_accuracy_score(truth, predicted))


def _probabilities(model: Any, features: Array, classes: int) -> Array:
    result = np.zeros((len(features), classes))
    result[:, model.classes_] = model.predict_proba(features)
    return result


def nearest_neighbours(k: float) -> Any:
    """Return a vote of the ``k`` nearest features by cosine; nearer ones count more, so that there are no ties.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4; the
    evaluation of Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers".
    """
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(int(k), metric="cosine", weights=_votes)


def _votes(distances: Array) -> Array:
    """Return the votes of neighbours, from 1 minus their cosine."""
    return np.asarray(np.exp(-distances / TEMPERATURE))


def logistic_regression(strength: float) -> Any:
    """Return a logistic regression of standardised features, with the inverse ``strength`` of L2 regularisation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=ITERATIONS))


METHODS: Mapping[str, tuple[Callable[[Any], Any], Sequence[float], str]] = {
    "knn": (nearest_neighbours, NEIGHBOURS, "k"),
    "linear": (logistic_regression, STRENGTHS, "C"),
}
"""Method -> how it is made, choices of its setting, name of that."""
