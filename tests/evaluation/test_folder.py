from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.made.evaluations import expected_scores, two_organs, write, write_cases
from volseg.errors import DataError, VolsegError
from volseg.evaluation.case import CaseTask, finished_case, score_case
from volseg.evaluation.folder import evaluate_folder
from volseg.evaluation.results import CaseResult
from volseg.io.cases import Case, GridRule

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def same(value: Any, expected: Any) -> bool:
    """Compare nested scores; NaN equals NaN, and rounding errors are tolerated."""
    if isinstance(value, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key]) for key in value)
    if isinstance(value, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, str):
        return value == expected
    return value == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_scores_equal_case_scores_for_every_suffix(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0, "b": 1, "c.d": 0})
    pred = write_cases(tmp_path / "pred", {"a": 1, "b": 1, "c.d": 2}, suffix=".nii")
    evaluation = evaluate_folder(pred, ref, LABELS)
    assert evaluation.methods == ("pred",)
    assert evaluation.cases == ("a", "b", "c.d")
    assert evaluation.classes == ("liver", "spleen")
    assert not evaluation.failed
    assert not evaluation.missing
    expected = expected_scores(two_organs(2), two_organs(0), {"liver": 1, "spleen": 2})
    assert same(evaluation.of_method("pred")[2].scores, expected)
    assert evaluation.values("pred", "dice")[1].tolist() == [1, 1]


def test_without_labels_the_values_of_the_references_are_scored(tmp_path: Path) -> None:
    ref = tmp_path / "ref"
    write(ref / "a.nii.gz", np.where(two_organs() == 2, 0, two_organs()))
    write(ref / "b.nii.gz", two_organs())
    evaluation = evaluate_folder(write_cases(tmp_path / "pred", {"a": 0, "b": 0}), ref)
    assert evaluation.classes == ("1", "2")
    assert evaluation.statuses("pred").tolist() == [["ok", "spurious"], ["ok", "ok"]]
    write(tmp_path / "pred" / "a.nii.gz", two_organs() // 2)
    assert evaluate_folder(tmp_path / "pred", ref).statuses("pred").tolist()[0] == ["ok", "both_empty"]


def test_a_predicted_value_that_no_reference_has_fails_the_case(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0, "b": 0})
    pred = write_cases(tmp_path / "pred", {"a": 0})
    write(pred / "b.nii.gz", two_organs() * 2)
    for labels in (None, LABELS):
        evaluation = evaluate_folder(pred, ref, labels)
        assert [(r.case, "4" in str(r.error)) for r in evaluation.failed] == [("b", True)]
        assert np.isnan(evaluation.values("pred", "dice")[1]).all()


def test_a_missing_prediction_is_scored_as_an_empty_mask(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0, "b": 0})
    evaluation = evaluate_folder(write_cases(tmp_path / "pred", {"a": 0}), ref, LABELS)
    assert [r.case for r in evaluation.missing] == ["b"]
    scores = evaluation.of_method("pred")[1].scores["liver"]
    assert (scores["dice"], scores["status"], scores["pred_voxels"]) == (0, "missed", 0)
    assert scores["hd95"] == pytest.approx(math.sqrt(18**2 + 10**2 + 6**2))


def test_files_without_a_reference_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    pred = write_cases(tmp_path / "pred", {"a": 0, "z": 0})
    (pred / "notes.docx").write_text("")
    (pred / "plans.json").write_text("{}")  # nnU-Net writes these
    (pred / "a.npz").write_text("")
    with caplog.at_level(logging.WARNING):
        evaluation = evaluate_folder(pred, ref, LABELS)
    assert evaluation.unmatched == {"pred": ("z", "notes.docx")}
    assert "z, notes.docx" in caplog.text


def test_the_order_of_the_voxels_does_not_matter(tmp_path: Path) -> None:
    """The same labels, stored from the other side, with the axes exchanged, or as class files."""
    affine = np.diag([3.0, 1.0, 0.5, 1.0])
    image = nibabel.Nifti1Image(two_organs().astype(np.uint8), affine)
    turned = image.as_reoriented(nibabel.orientations.axcodes2ornt("ILP"))
    (tmp_path / "ref").mkdir()
    (tmp_path / "pred" / "b").mkdir(parents=True)
    for case in "ab":
        nibabel.save(image, tmp_path / "ref" / f"{case}.nii.gz")
    nibabel.save(turned, tmp_path / "pred" / "a.nii.gz")
    for (name, value), source in zip({"liver": 1, "spleen": 2}.items(), (image, turned), strict=True):
        inside = (np.asanyarray(source.dataobj) == value).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(inside, source.affine), tmp_path / "pred" / "b" / f"{name}.nii.gz")
    evaluation = evaluate_folder(tmp_path / "pred", tmp_path / "ref", LABELS)
    assert not evaluation.failed
    assert evaluation.values("pred", "dice").tolist() == [[1, 1], [1, 1]]
    assert evaluation.values("pred", "hd95").tolist() == [[0, 0], [0, 0]]


def test_a_failed_case_is_reported_and_the_others_are_scored(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0, "b": 0, "c": 0, "d": 0})
    pred = write_cases(tmp_path / "pred", {"a": 0, "d": 0})
    (pred / "b.nii.gz").write_bytes(b"not a file")
    write(pred / "c.nii.gz", two_organs(), spacing=(3.0, 1.0, 0.5), origin=0.02)
    evaluation = evaluate_folder(pred, ref, LABELS)
    assert [r.case for r in evaluation.failed] == ["b", "c"]
    assert "b.nii.gz" in str(evaluation.failed[0].error)
    message = str(evaluation.failed[1].error)
    assert "different grids" in message
    assert message.count("6 x 10 x 12") == 2  # both grids are shown
    assert "0.02" in message
    assert evaluation.values("pred", "dice")[[0, 3]].tolist() == [[1, 1], [1, 1]]


def test_grids_may_differ_by_a_hundredth_of_a_millimetre(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    write(tmp_path / "pred" / "a.nii.gz", two_organs(), origin=0.009)
    assert not evaluate_folder(tmp_path / "pred", ref, LABELS).failed


def test_a_wider_tolerance_and_the_grid_of_the_image_are_accepted_on_request(tmp_path: Path) -> None:
    """The prediction lies on the grid of the image; distances are in its millimetres."""
    write(tmp_path / "ref" / "a.nii.gz", two_organs(1), spacing=(1.0, 1.0, 1.0))
    write(tmp_path / "pred" / "a.nii.gz", two_organs())
    arguments = (tmp_path / "pred", tmp_path / "ref", LABELS)
    assert evaluate_folder(*arguments, grids=GridRule(0.5)).failed
    accepted = evaluate_folder(*arguments, grids=GridRule(label_takes_image_grid=True))
    expected = expected_scores(two_organs(), two_organs(1), {"liver": 1, "spleen": 2})
    assert same(accepted.of_method("pred")[0].scores, expected)
    write(tmp_path / "ref" / "a.nii.gz", two_organs(1), origin=0.4)
    assert evaluate_folder(*arguments).failed
    assert same(evaluate_folder(*arguments, grids=GridRule(0.5)).of_method("pred")[0].scores, expected)


def test_an_invalid_reference_fails_its_case_for_every_method(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0, "b": 0})
    (ref / "b.nii.gz").write_bytes(b"")
    one, two = (write_cases(tmp_path / name, {"a": 0, "b": 0}) for name in ("one", "two"))
    evaluation = evaluate_folder({"x": one, "y": two}, ref, LABELS)
    assert [(r.method, r.case) for r in evaluation.failed] == [("x", "b"), ("y", "b")]


def test_label_maps_that_differ_raise(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    pred = write_cases(tmp_path / "pred", {"a": 0})
    for labels in ({"liver": 2, "spleen": 1}, {"liver": 1, "pancreas": 2}):
        (pred / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}}))
        with pytest.raises(DataError, match="another label map"):
            evaluate_folder(pred, ref, LABELS)


def test_label_maps_beside_the_masks_are_compared(tmp_path: Path) -> None:
    """The reference's label map is in its data set, the prediction's next to the masks."""
    ref = write_cases(tmp_path / "data" / "labelsTr", {"a": 0})
    pred = write_cases(tmp_path / "pred", {"a": 0})
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    (pred / "dataset.json").write_text(json.dumps({"labels": {"liver": 2}}))
    with pytest.raises(DataError, match="liver is 2, not 1"):
        evaluate_folder(pred, ref)


def test_predictions_without_any_reference_name_raise(tmp_path: Path) -> None:
    ref, pred = write_cases(tmp_path / "ref", {"a": 0}), write_cases(tmp_path / "pred", {"a_pred": 0})
    with pytest.raises(DataError, match="a_pred"):
        evaluate_folder(pred, ref, LABELS)


def test_additional_predicted_classes_are_valid_if_the_label_map_has_them(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    labels = two_organs()
    labels[0, 0, 0] = 3
    write(tmp_path / "pred" / "a.nii.gz", labels)
    assert evaluate_folder(tmp_path / "pred", ref, LABELS).failed
    (tmp_path / "pred" / "dataset.json").write_text(json.dumps({"labels": {"Liver": 1, "spleen": 2, "aorta": 3}}))
    assert not evaluate_folder(tmp_path / "pred", ref, LABELS).failed


def test_regions_and_ignore_come_from_the_labels(tmp_path: Path) -> None:
    labels = two_organs()
    labels[:, :, 11] = 7
    ref = write(tmp_path / "ref" / "a.nii.gz", labels).parent
    pred = write_cases(tmp_path / "pred", {"a": 0})
    evaluation = evaluate_folder(pred, ref, {"both": [1, 2], "spleen": 2, "ignore": 7})
    assert evaluation.classes == ("both", "spleen")
    assert evaluation.label_map.ignore_label == 7
    assert (evaluation.values("pred", "dice") == 1).all()


@pytest.mark.parametrize("sub", ["", "segmentations"])
def test_one_file_per_class_against_label_maps(tmp_path: Path, sub: str) -> None:
    """TotalSegmentator's folders: file names, not values, identify the classes."""
    ref = write_cases(tmp_path / "ref", {"s1": 0})
    for name, value in (("Left_Kidney", 1), ("spleen", 2), ("aorta", 3)):
        write(tmp_path / "pred" / "s1" / sub / f"{name}.nii.gz", (two_organs(1) == value).astype(np.uint8))
    evaluation = evaluate_folder(tmp_path / "pred", ref, {"left kidney": 1, "spleen": 2, "liver": 5})
    expected = expected_scores(two_organs(1), two_organs(), {"left kidney": 1, "spleen": 2, "liver": 5})
    assert same(evaluation.of_method("pred")[0].scores, expected)
    assert "liver" in evaluation.of_method("pred")[0].notes[0]


def test_one_file_per_class_needs_no_label_map_and_may_overlap(tmp_path: Path) -> None:
    masks = {"body": two_organs() > 0, "liver": two_organs() == 1, "spleen": two_organs() == 2}
    for name, mask in masks.items():
        write(tmp_path / "ref" / "s1" / f"{name}.nii.gz", mask.astype(np.uint8))
        write(tmp_path / "pred" / "s1" / f"{name}.nii.gz", np.roll(mask, 1, 1).astype(np.uint8))
    evaluation = evaluate_folder(tmp_path / "pred", tmp_path / "ref")
    assert evaluation.classes == ("body", "liver", "spleen")
    for name, mask in masks.items():
        expected = expected_scores(np.roll(mask, 1, 1), mask, {"x": 1})["x"]
        assert same(evaluation.of_method("pred")[0].scores[name], expected)


def test_worker_processes_give_equal_results(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0, "b": 1, "c": 0})
    pred = write_cases(tmp_path / "pred", {"a": 1, "b": 0})
    (pred / "c.nii.gz").write_bytes(b"")
    calls: list[tuple[int, int]] = []
    alone = evaluate_folder(pred, ref, LABELS)
    together = evaluate_folder(pred, ref, LABELS, workers=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert same([r.scores for r in alone.results], [r.scores for r in together.results])
    assert [r.error for r in alone.results] == [r.error for r in together.results]


def test_a_dead_worker_fails_its_case_for_every_method(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    evaluation = evaluate_folder(ref, ref, LABELS)
    source = evaluation.results[0].reference
    assert source is not None
    task = CaseTask("a", source, {"m": source, "n": None}, None, evaluation.settings)

    def died() -> list[CaseResult]:
        raise VolsegError("a worker process died")

    failed = finished_case(task, died)
    assert [(r.method, r.case, r.missing, r.error) for r in failed] == [
        ("m", "a", False, "a worker process died"),
        ("n", "a", True, "a worker process died"),
    ]


def test_only_background_cannot_be_scored(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    with pytest.raises(DataError, match="no class"):
        evaluate_folder(ref, ref, {"background": 0})


def test_only_the_selected_cases_are_scored(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0, "b": 0})
    assert evaluate_folder(ref, ref, LABELS, cases=["b"]).cases == ("b",)


def test_score_case_records_errors(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    evaluation = evaluate_folder(ref, ref, LABELS)
    assert evaluation.results[0].error is None
    broken = CaseTask("a", evaluation.results[0].reference, {"m": None}, None, evaluation.settings)  # type: ignore[arg-type]
    assert score_case(broken)[0].missing


def listed(root: Path, names: dict[str, str]) -> tuple[Case, ...]:
    return tuple(
        Case(image, (root / f"images/{image}.nii.gz",), root / f"{label}.nii.gz") for image, label in names.items()
    )


@pytest.mark.parametrize("ref_kind", ["folder", "pairs alone", "mapping"])
def test_listed_labels_are_the_references(tmp_path: Path, ref_kind: str) -> None:
    """The listed labels have other names than the images; older drafts have the images' names."""
    write_cases(tmp_path / "ref", {"a_final": 0, "b_final": 0, "a": 2, "b": 2})
    pred = write_cases(tmp_path / "pred", {"a": 0, "b": 1})
    pairs = listed(tmp_path, {"a": "ref/a_final", "b": "ref/b_final"})
    files = {"a": tmp_path / "ref/a_final.nii.gz", "b": tmp_path / "ref/b_final.nii.gz"}
    ref = {"folder": tmp_path / "ref", "pairs alone": None, "mapping": files}[ref_kind]
    evaluation = evaluate_folder(pred, ref, LABELS, pairs=() if ref_kind == "mapping" else pairs)
    assert evaluation.cases == ("a", "b")
    dice = evaluation.values("pred", "dice")
    assert dice[0].tolist() == [1, 1]
    expected = expected_scores(two_organs(1), two_organs(0), {"liver": 1, "spleen": 2})
    assert dice[1].tolist() == [expected["liver"]["dice"], expected["spleen"]["dice"]]


def test_listed_labels_may_lie_in_several_folders(tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        write(tmp_path / name / f"{name}_seg.nii.gz", two_organs(0))
    pred = write_cases(tmp_path / "pred", {"p1": 0, "p2": 0})
    evaluation = evaluate_folder(pred, None, LABELS, pairs=listed(tmp_path, {n: f"{n}/{n}_seg" for n in ("p1", "p2")}))
    assert evaluation.values("pred", "dice").tolist() == [[1, 1], [1, 1]]


def test_a_listed_label_in_another_folder_is_ignored(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    pred = write_cases(tmp_path / "pred", {"a": 0})
    evaluation = evaluate_folder(pred, ref, LABELS, pairs=listed(tmp_path, {"a": "labelsTr/a"}))
    assert evaluation.values("pred", "dice").tolist() == [[1, 1]]


def test_a_missing_listed_label_fails_only_its_case(tmp_path: Path) -> None:
    write_cases(tmp_path / "ref", {"a": 0})
    pred = write_cases(tmp_path / "pred", {"a": 0, "b": 0})
    evaluation = evaluate_folder(pred, None, LABELS, pairs=listed(tmp_path, {"a": "ref/a", "b": "ref/b"}))
    assert [(r.case, "b.nii.gz" in str(r.error)) for r in evaluation.failed] == [("b", True)]
    assert evaluation.values("pred", "dice")[0].tolist() == [1, 1]


def test_missing_references_raise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no references"):
        evaluate_folder(write_cases(tmp_path / "pred", {"a": 0}), None, LABELS)


@pytest.mark.parametrize("labels", [LABELS, None])
def test_a_tolerance_of_an_unknown_class_raises(tmp_path: Path, labels: Any) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    name = "livr" if labels else "7"
    with pytest.raises(DataError, match="class that does not exist") as error:
        evaluate_folder(ref, ref, labels, class_tolerance_mm={name: 2.0})
    assert ("did you mean liver" in str(error.value)) == bool(labels)


def test_classes_without_surfels_have_dice_and_no_nsd(tmp_path: Path) -> None:
    """Annotating every second slice leaves borders without surfels."""
    sparse = two_organs(0)
    sparse[::2] = 9
    write(tmp_path / "ref/a.nii.gz", sparse)
    pred = write_cases(tmp_path / "pred", {"a": 0})
    evaluation = evaluate_folder(pred, tmp_path / "ref", {**LABELS, "IGNORE": 9})
    assert not evaluation.failed
    assert evaluation.values("pred", "dice").tolist() == [[1, 1]]
    assert np.isnan(evaluation.values("pred", "nsd")).all()


@pytest.mark.parametrize("tolerance", [math.inf, math.nan, -1.0])
def test_an_invalid_tolerance_raises(tmp_path: Path, tolerance: float) -> None:
    ref = write_cases(tmp_path / "ref", {"a": 0})
    with pytest.raises(DataError, match="all classes is out of range"):
        evaluate_folder(ref, ref, LABELS, nsd_tolerance_mm=tolerance)
    with pytest.raises(DataError, match="'liver' is out of range"):
        evaluate_folder(ref, ref, LABELS, class_tolerance_mm={"liver": tolerance})
