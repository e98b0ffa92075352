"""Accuracy, balanced accuracy, AUC and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from volseg.probing.scores import scores_with_intervals, weighted_auc, weighted_scores

TRUTH = np.array([0, 0, 0, 1])
CHANCES = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])


def test_scores_of_a_case_counted_by_hand() -> None:
    values = weighted_scores(TRUTH, CHANCES, CHANCES.argmax(axis=1), np.ones((1, 4)))[0]

    np.testing.assert_allclose(values, [3 / 4, (2 / 3 + 1) / 2, 1])


def test_auc_counts_pairs_and_ties_half() -> None:
    positive, values = np.array([1, 1, 0, 0, 0.0]), np.array([3, 1, 1, 0, 2.0])  # 3 > 1, 0, 2; 1 = 1, > 0, < 2

    assert weighted_auc(positive, values, np.ones((1, 5)))[0] == pytest.approx((3 + 1.5) / 6)


def test_weights_stand_for_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    truth, chances = rng.integers(3, size=20), rng.dirichlet(np.ones(3), size=20).round(1)
    weights = rng.integers(0, 3, size=(4, 20))
    predicted = chances.argmax(axis=1)
    together = weighted_scores(truth, chances, predicted, weights.astype(float))

    for row, counts in enumerate(weights):
        drawn = np.repeat(np.arange(20), counts)
        alone = weighted_scores(truth[drawn], chances[drawn], predicted[drawn], np.ones((1, len(drawn))))[0]
        np.testing.assert_allclose(together[row], alone)


def test_scores_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    truth, chances = rng.integers(3, size=60), rng.dirichlet(np.ones(3), size=60)
    predicted = chances.argmax(axis=1)
    ours = weighted_scores(truth, chances, predicted, np.ones((1, 60)))[0]

    theirs = (
        metrics.accuracy_score(truth, predicted),
        metrics.balanced_accuracy_score(truth, predicted),
        metrics.roc_auc_score(truth, chances, multi_class="ovr", average="macro"),
    )
    np.testing.assert_allclose(ours, theirs)


def test_a_class_without_samples_is_left_out() -> None:
    chances = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    values = weighted_scores(np.array([0, 1]), chances, np.array([0, 1]), np.array([[1.0, 1.0], [1.0, 0.0]]))

    np.testing.assert_allclose(values, [[1, 1, 1], [1, 1, np.nan]])


def test_the_bootstrap_draws_patients_with_all_their_samples() -> None:
    right = np.array([1, 1, 1, 0, 0, 0])  # patient 0 is always right, patient 1 never: means of 0, 1/2 and 1
    chances = np.stack([1 - right, right], axis=1).astype(float)
    arguments = np.ones(6, np.int64), chances, right
    whole = scores_with_intervals(*arguments, np.array([0, 0, 0, 1, 1, 1]))
    single = scores_with_intervals(*arguments, np.arange(6))

    assert whole["accuracy"] == {"mean": 0.5, "ci95": [0.0, 1.0]}
    assert single["accuracy"]["ci95"] != [0.0, 1.0]
    assert whole == scores_with_intervals(*arguments, np.array([0, 0, 0, 1, 1, 1]))
    assert scores_with_intervals(*arguments, np.zeros(6, np.int64))["accuracy"]["ci95"] == [None, None]
