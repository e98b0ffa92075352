from __future__ import annotations

import json

import numpy as np
import pytest

from tests.made.evaluations import evaluation_of, scores_of
from volseg.evaluation.summary import summarize
from volseg.metrics.statistics import bootstrap_means

CLASSES = ("liver", "spleen")
ONE = [
    [scores_of(0.9), scores_of(0.5)],
    [scores_of(0.8), scores_of(0.0, "missed", hd95=100.0)],
    [scores_of(0.7), scores_of(0.0, "both_empty", pred_voxels=0, ref_voxels=0)],
    "the file is broken",
]
TWO = [
    [scores_of(0.9), scores_of(0.6)],
    [scores_of(0.9), scores_of(0.1)],
    [scores_of(0.6), scores_of(0.0, "spurious", ref_voxels=0)],
    [scores_of(0.5), scores_of(0.5)],
]


def test_intervals_of_few_cases_get_a_note() -> None:
    few = summarize(evaluation_of({"one": ONE}, CLASSES), resamples=10)["convention"]
    assert few.endswith("Intervals of fewer than 5 cases are too narrow to rely on (liver: 3, spleen: 2).")
    many = summarize(evaluation_of({"one": [ONE[0]] * 5}, CLASSES), resamples=10)["convention"]
    assert many.endswith("[95% bootstrap interval over cases]")


def test_counts_and_means_by_hand() -> None:
    summary = summarize(evaluation_of({"one": ONE}, CLASSES), resamples=200)
    method = summary["methods"]["one"]
    assert (method["n_missing"], method["n_failed"], summary["n_cases"]) == (0, 1, 4)
    assert method["failed"] == {"case_3": "the file is broken"}
    liver, spleen = method["classes"]["liver"], method["classes"]["spleen"]
    assert liver["dice"]["n"] == 3
    assert liver["dice"]["mean"] == pytest.approx(0.8)
    assert [spleen[f"n_{s}"] for s in ("ok", "missed", "spurious", "both_empty", "failed")] == [1, 1, 0, 1, 1]
    assert spleen["hd95"]["mean"] == pytest.approx((5 + 100) / 2)
    assert spleen["hd95_detected"]["mean"] == pytest.approx(5)
    assert spleen["hd95_detected"]["n"] == 1
    assert spleen["hd95_detected"]["ci95"] == [None, None]


def test_headline_and_other_aggregations_by_hand() -> None:
    evaluation = evaluation_of({"one": ONE}, CLASSES)
    method = summarize(evaluation, resamples=200)["methods"]["one"]
    assert method["headline"]["dice"]["mean"] == pytest.approx((0.8 + 0.25) / 2)
    assert method["aggregations"]["dice"] == {
        "mean_over_cases_then_classes": pytest.approx(0.525),
        "mean_over_classes_then_cases": pytest.approx((0.7 + 0.4 + 0.7) / 3),
        "mean_over_all_pairs": pytest.approx((0.9 + 0.5 + 0.8 + 0.0 + 0.7) / 5),
        "cases_with_reference_only": pytest.approx(0.525),
        "detected_only": pytest.approx((0.8 + 0.5) / 2),
        "both_empty_as_1": pytest.approx((0.8 + 0.5) / 2),
        "pooled_voxels_per_class": pytest.approx((0.8 + 0.25) / 2),
    }


def test_pooled_dice_weights_cases_by_voxels() -> None:
    rows = [[scores_of(1.0, pred_voxels=900, ref_voxels=900)], [scores_of(0.0, pred_voxels=100, ref_voxels=100)]]
    means = summarize(evaluation_of({"m": rows}, ("a",)), resamples=10)["methods"]["m"]["aggregations"]["dice"]
    assert means["pooled_voxels_per_class"] == pytest.approx(0.9)
    assert means["mean_over_cases_then_classes"] == pytest.approx(0.5)


def test_headline_interval_equals_resampling_by_hand() -> None:
    """Resample the cases with the same seed and average over cases, then over classes."""
    evaluation = evaluation_of({"two": TWO}, CLASSES)
    headline = summarize(evaluation, resamples=500, seed=3)["methods"]["two"]["headline"]["dice"]
    means = bootstrap_means(evaluation.values("two", "dice"), 500, 3).mean(axis=1)
    assert headline["ci95"] == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_paired_comparison_by_hand() -> None:
    summary = summarize(evaluation_of({"one": ONE, "two": TWO}, CLASSES), resamples=200)
    entry = next(c for c in summary["comparisons"] if c["metric"] == "dice")
    assert (entry["a"], entry["b"], entry["higher_is_better"]) == ("one", "two", True)
    liver, spleen, mean = entry["classes"]["liver"], entry["classes"]["spleen"], entry["mean_over_classes"]
    assert (liver["n"], liver["wins"], liver["ties"], liver["losses"]) == (3, 1, 1, 1)  # the failed case is skipped
    assert liver["mean_difference"] == pytest.approx(0)
    assert (spleen["n"], spleen["losses"]) == (2, 2)
    assert spleen["mean_difference"] == pytest.approx(-0.1)
    assert (liver["wilcoxon_p"], spleen["wilcoxon_p"]) == (1.0, 0.5)
    assert spleen["holm_p"] == 1.0
    assert mean["mean_difference"] == pytest.approx(-0.05)
    assert mean["n"] == 3
    hd95 = next(c for c in summary["comparisons"] if c["metric"] == "hd95")
    assert hd95["classes"]["liver"]["wins"] == 1  # a smaller distance wins


def test_three_methods_are_compared_in_pairs() -> None:
    rows = {name: [[scores_of(0.5)], [scores_of(0.6)]] for name in "abc"}
    pairs = {(c["a"], c["b"]) for c in summarize(evaluation_of(rows, ("x",)), resamples=10)["comparisons"]}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")}


def test_the_summary_is_json_without_nan_and_states_its_convention() -> None:
    summary = summarize(evaluation_of({"one": ONE}, CLASSES), resamples=10)
    text = json.dumps(summary, allow_nan=False)
    assert json.loads(text) == summary
    assert "MONAI" in summary["convention"]
    assert summary["cases"][2]["scores"]["spleen"]["dice"] is None
    assert summary["cases"][3]["error"] == "the file is broken"


def test_a_class_absent_from_all_cases_has_no_mean() -> None:
    rows = [[scores_of(0.8), scores_of(0, "both_empty", pred_voxels=0, ref_voxels=0)]] * 2
    evaluation = evaluation_of({"m": rows, "k": rows}, CLASSES)
    summary = summarize(evaluation, resamples=10)
    method = summary["methods"]["m"]
    assert method["classes"]["spleen"]["dice"]["mean"] is None
    assert method["headline"]["dice"]["mean"] == pytest.approx(0.8)
    assert summary["comparisons"][0]["classes"]["spleen"]["n"] == 0
    assert summary["comparisons"][0]["classes"]["spleen"]["holm_p"] is None


def test_the_headline_is_not_defined_if_all_cases_failed() -> None:
    summary = summarize(evaluation_of({"m": ["broken"], "k": ["broken"]}, CLASSES), resamples=10)
    assert summary["methods"]["m"]["headline"]["dice"]["mean"] is None
