from __future__ import annotations

import math

import numpy as np
import pytest

from tests.made.masks import brute_border, brute_distances, random_pair
from volseg.errors import DataError, GeometryError
from volseg.metrics import case_scores

SHAPE, SPACING = (12, 20, 24), (3.0, 0.5, 2.0)
DIAGONAL = math.sqrt(36.0**2 + 10.0**2 + 48.0**2)


def box(start: tuple[int, int, int], stop: tuple[int, int, int], value: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = value
    return labels


def test_equal_masks_have_perfect_scores() -> None:
    mask = box((2, 3, 4), (7, 12, 15))
    assert case_scores(mask, mask, SPACING, [1])[1] == {
        "dice": 1.0,
        "iou": 1.0,
        "hd95": 0.0,
        "hd": 0.0,
        "assd": 0.0,
        "nsd": 1.0,
        "volume_error": 0.0,
        "pred_voxels": 495,
        "ref_voxels": 495,
        "status": "ok",
    }


@pytest.mark.parametrize(("axis", "spacing_mm"), list(enumerate(SPACING)))
def test_a_shifted_box_along_each_axis(axis: int, spacing_mm: float) -> None:
    """The scores of a 4 x 8 x 6 box moved by two voxels follow from its size."""
    start, stop = np.array([2, 3, 4]), np.array([6, 11, 10])
    shift = 2 * np.eye(3, dtype=int)[axis]
    ref, pred = box(tuple(start), tuple(stop)), box(tuple(start + shift), tuple(stop + shift))
    scores = case_scores(pred, ref, SPACING, [1])[1]
    length = (stop - start)[axis]
    assert scores["dice"] == pytest.approx((length - 2) / length)
    assert scores["iou"] == pytest.approx((length - 2) / (length + 2))
    assert scores["hd"] == pytest.approx(2 * spacing_mm)
    assert scores["volume_error"] == 0


def test_hd95_assd_and_modes_of_two_plates_by_hand() -> None:
    """All voxels of the plates are border. 19 of 20 predicted voxels lie on the plate, one is 5 voxels off."""
    ref, pred = np.zeros((1, 40, 20), np.uint8), np.zeros((1, 40, 20), np.uint8)
    ref[0, 10] = 1
    pred[0, 10, :19] = 1
    pred[0, 15, 19] = 1
    spacing = (1.0, 2.0, 3.0)
    expected_to_ref, expected_to_pred = [0.0] * 19 + [10.0], [0.0] * 19 + [3.0]
    scores = case_scores(pred, ref, spacing, [1])[1]
    assert scores["hd95"] == pytest.approx(np.percentile(expected_to_ref, 95))  # linear interpolation
    assert scores["hd95"] == pytest.approx(0.5)
    assert scores["hd"] == 10
    assert scores["assd"] == pytest.approx(13 / 40)
    pooled = case_scores(pred, ref, spacing, [1], hd_mode="pooled")[1]
    assert pooled["hd95"] == pytest.approx(np.percentile(expected_to_ref + expected_to_pred, 95))
    assert pooled["hd"] == 10


def test_nsd_of_a_slab_by_hand() -> None:
    """One of two equal faces is 2 mm off. A frame of ignored voxels removes the rims."""
    ref, pred = np.zeros((10, 20, 20), np.uint8), np.zeros((10, 20, 20), np.uint8)
    ref[2:6], pred[2:8] = 1, 1
    ref[:, [0, -1]] = ref[:, :, [0, -1]] = 9
    tolerances = {0.0: 0.5, 1.0: 0.5, 1.99: 0.5, 2.0: 1.0}
    for tolerance, expected in tolerances.items():
        scores = case_scores(pred, ref, (1.0, 0.7, 3.0), [1], nsd_tolerance_mm=tolerance, ignore_label=9)
        assert scores[1]["nsd"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(10))
def test_equals_brute_force_on_small_volumes(seed: int) -> None:
    pred, ref, spacing = random_pair(seed, largest=9)
    to_ref = brute_distances(a := brute_border(pred), b := brute_border(ref), spacing)
    to_pred = brute_distances(b, a, spacing)
    scores = case_scores(pred, ref, spacing, [1])[1]
    assert scores["dice"] == pytest.approx(2 * (pred & ref).sum() / (pred.sum() + ref.sum()))
    assert scores["iou"] == pytest.approx((pred & ref).sum() / (pred | ref).sum())
    assert scores["hd95"] == pytest.approx(max(np.percentile(to_ref, 95), np.percentile(to_pred, 95)))
    assert scores["hd"] == pytest.approx(max(to_ref.max(), to_pred.max()))
    assert scores["assd"] == pytest.approx(np.concatenate([to_ref, to_pred]).mean())
    assert scores["volume_error"] == pytest.approx(pred.sum() / ref.sum() - 1)


@pytest.mark.parametrize("hd_mode", ["max", "pooled", "surfel"])
@pytest.mark.parametrize(("pred_value", "ref_value", "status"), [(0, 1, "missed"), (1, 0, "spurious")])
def test_one_empty_mask_gives_the_worst_scores(hd_mode: str, pred_value: int, ref_value: int, status: str) -> None:
    mask = box((2, 3, 4), (7, 12, 15))
    scores = case_scores(mask * pred_value, mask * ref_value, SPACING, {"organ": 1}, hd_mode=hd_mode)["organ"]
    assert (scores["dice"], scores["iou"], scores["nsd"], scores["status"]) == (0, 0, 0, status)
    assert scores["hd95"] == scores["hd"] == scores["assd"] == pytest.approx(DIAGONAL)
    assert math.isnan(scores["volume_error"]) == (status == "spurious")


def test_scores_of_two_empty_masks_are_not_defined() -> None:
    scores = case_scores(box((0, 0, 0), (2, 2, 2)), box((0, 0, 0), (2, 2, 2)), SPACING, [1, 5])[5]
    assert scores["status"] == "both_empty"
    assert all(math.isnan(scores[key]) for key in ("dice", "iou", "hd95", "hd", "assd", "nsd", "volume_error"))


def test_spacing_follows_the_order_of_the_axes() -> None:
    ref, pred = box((2, 3, 4), (6, 11, 10)), box((3, 3, 4), (7, 11, 10))
    assert case_scores(pred, ref, (5.0, 1.0, 1.0), [1])[1]["hd"] == 5
    moved = [np.moveaxis(mask, 0, 2) for mask in (pred, ref)]
    assert case_scores(*moved, (1.0, 1.0, 5.0), [1])[1]["hd"] == 5


def test_scores_are_symmetric_in_prediction_and_reference() -> None:
    pred, ref, spacing = random_pair(5)
    one, other = case_scores(pred, ref, spacing, [1])[1], case_scores(ref, pred, spacing, [1])[1]
    for key in ("dice", "iou", "hd95", "hd", "assd", "nsd"):
        assert one[key] == pytest.approx(other[key])


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_integer_types_give_equal_scores(dtype: type) -> None:
    ref, pred = box((2, 3, 4), (6, 11, 10), 3), box((3, 3, 4), (7, 11, 10), 3)
    assert case_scores(pred.astype(dtype), ref, SPACING, [3]) == case_scores(pred, ref, SPACING, [3])


def test_values_without_a_class_are_background() -> None:
    ref = box((2, 3, 4), (6, 11, 10)).astype(np.int64)
    pred = ref.copy()
    pred[0, 0, :3] = (-4, 70_000, 2**40)
    assert case_scores(pred, ref, SPACING, [1])[1]["dice"] == 1


def test_regions_are_scored_as_one_class_and_may_be_nested() -> None:
    ref = np.maximum(box((2, 3, 4), (8, 12, 16), 1), box((3, 5, 6), (5, 8, 10), 2))
    pred = np.maximum(box((2, 3, 4), (8, 12, 16), 2), box((3, 5, 6), (5, 8, 10), 1))  # parts swapped
    scores = case_scores(pred, ref, SPACING, {"whole": (1, 2), "core": 2, "background": 0})
    assert list(scores) == ["whole", "core"]
    assert scores["whole"]["dice"] == 1
    assert scores["core"] == case_scores(pred == 2, ref == 2, SPACING, [1])[1]


def test_region_equals_the_union_mask() -> None:
    rng = np.random.default_rng(3)
    pred, ref = rng.integers(0, 4, (6, 7, 8)), rng.integers(0, 4, (6, 7, 8))
    scores = case_scores(pred, ref, SPACING, {"a": (1, 3), "b": 2, "all": (1, 2, 3)}, ignore_label=None)
    for name, values in {"a": (1, 3), "b": (2,), "all": (1, 2, 3)}.items():
        assert scores[name] == case_scores(np.isin(pred, values), np.isin(ref, values), SPACING, [1])[1]


def test_predictions_in_ignored_voxels_do_not_change_any_score() -> None:
    """Random predictions under the ignore label leave the scores unchanged; its border is no surface."""
    ref = box((2, 3, 4), (8, 12, 16))
    ref[5:] = 9
    pred = box((2, 3, 4), (5, 12, 16))
    expected = case_scores(pred, ref, SPACING, [1], ignore_label=9)[1]
    assert expected["dice"] == 1
    assert expected["hd"] == 0
    assert expected["ref_voxels"] == 3 * 9 * 12
    rng = np.random.default_rng(0)
    pred[5:] = rng.integers(0, 2, pred[5:].shape)
    assert case_scores(pred, ref, SPACING, {"a": 1}, ignore_label=9)["a"] == expected
    assert case_scores(pred, ref, SPACING, {"a": (1, 2)}, ignore_label=9)["a"] == expected


def test_a_predicted_surface_without_a_reference_surface_is_spurious() -> None:
    """The organ fills the annotated region, so only a hole in the prediction has a surface."""
    ref = np.full(SHAPE, 9, np.uint8)
    ref[4:8, 5:15, 6:18] = 1
    pred = np.ones(SHAPE, np.uint8)
    perfect = case_scores(pred, ref, SPACING, [1], ignore_label=9)[1]
    assert perfect["dice"] == 1
    assert math.isnan(perfect["hd95"])
    pred[5, 8, 9] = 0
    holed = case_scores(pred, ref, SPACING, [1], ignore_label=9)[1]
    assert holed["hd95"] == pytest.approx(DIAGONAL)
    assert holed["nsd"] == 0


def test_tolerances_apply_per_class() -> None:
    ref = np.maximum(box((2, 3, 4), (6, 11, 10)), box((2, 3, 12), (6, 11, 18), 2))
    pred = np.roll(ref, 1, axis=1)
    scores = case_scores(pred, ref, SPACING, [1, 2], nsd_tolerance_mm={1: 0.1, 2: 3.0})
    assert scores[1]["nsd"] < 0.8
    assert scores[2]["nsd"] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"spacing_mm": (1, 1)}, GeometryError, "three positive numbers"),
        ({"spacing_mm": (1, 1, 0)}, GeometryError, "three positive numbers"),
        ({"ref": np.zeros((2, 2, 3), np.uint8)}, GeometryError, "shape"),
        ({"pred": np.zeros((2, 2, 2), np.float32)}, DataError, "whole numbers"),
        ({"hd_mode": "mean"}, DataError, "max, pooled, surfel"),
        ({"labels": {"a": -1}}, DataError, "label value"),
        ({"labels": {"a": ()}}, DataError, "label value"),
        ({"labels": [1.5]}, DataError, "label value"),
        ({"ignore_label": 1}, DataError, "ignore"),
        ({"nsd_tolerance_mm": -1.0}, DataError, "tolerance"),
    ],
)
def test_invalid_arguments_raise(arguments: dict, error: type[Exception], text: str) -> None:
    good = {"pred": np.zeros((2, 2, 2), np.uint8), "ref": np.zeros((2, 2, 2), np.uint8)}
    with pytest.raises(error, match=text):
        case_scores(**{**good, "spacing_mm": (1, 1, 1), "labels": [1], **arguments})


@pytest.mark.parametrize("hd_mode", ["max", "pooled", "surfel"])
def test_a_class_with_borders_and_no_surfels(hd_mode: str) -> None:
    """With one annotated slice of five, every cube of 2 x 2 x 2 voxels contains an ignored voxel (9)."""
    ref = np.full((5, 20, 20), 9, np.uint8)
    ref[2] = 0
    ref[2, 5:12, 5:12] = 1
    pred = np.zeros_like(ref)
    pred[1:4, 5:12, 6:12] = 1
    scores = case_scores(pred, ref, (3.0, 1.0, 1.0), {"organ": 1}, hd_mode=hd_mode, ignore_label=9)["organ"]
    assert scores["status"] == "ok"
    assert scores["dice"] == pytest.approx(2 * 42 / (42 + 49))
    assert math.isnan(scores["nsd"])  # no annotated surface element: not defined
    if hd_mode == "surfel":
        assert math.isnan(scores["hd95"])
    else:  # the 7 pixels of the left edge are 1 mm off, and so are the 5 inner pixels of the prediction's left edge
        assert (scores["hd95"], scores["hd"]) == (1.0, 1.0)
    assert scores["assd"] == pytest.approx((7 + 5) / (24 + 22))


def test_sparse_annotation_keeps_every_class() -> None:
    """Every second slice of class 1 is annotated, class 2 is ignored, and class 3 does not occur."""
    ref = np.zeros((9, 12, 12), np.uint8)
    ref[1:8, 2:6, 2:6], ref[1:8, 7:10, 7:10] = 1, 2
    pred = np.roll(ref, 1, axis=2)
    ref[ref == 2] = 9
    ref[::2] = 9
    scores = case_scores(pred, ref, (1.0, 1.0, 1.0), {"a": 1, "b": 2, "c": 3}, ignore_label=9)
    assert (scores["a"]["status"], scores["a"]["dice"]) == ("ok", 0.75)
    assert scores["b"]["status"] == "spurious"  # its rightmost column lies next to the ignored voxels
    assert scores["c"]["status"] == "both_empty"


@pytest.mark.parametrize("hd_mode", ["max", "pooled", "surfel"])
@pytest.mark.parametrize("seed", range(30))
def test_every_pattern_of_ignored_voxels_gives_valid_scores(seed: int, hd_mode: str) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 8, 3))
    pred, ref = (rng.integers(0, 3, shape).astype(np.uint8) for _ in range(2))
    pattern = seed % 5
    if pattern == 0:
        ref[rng.random(shape) < rng.random()] = 9
    elif pattern < 4:
        np.moveaxis(ref, pattern - 1, 0)[:: int(rng.integers(1, 4))] = 9
    else:
        ref[ref == 1] = 9
    for scores in case_scores(pred, ref, (3.0, 1.0, 0.5), [1, 2], hd_mode=hd_mode, ignore_label=9).values():
        for name in ("dice", "iou", "nsd"):
            assert math.isnan(scores[name]) or 0 <= scores[name] <= 1
        for name in ("hd95", "hd", "assd"):
            assert math.isnan(scores[name]) or 0 <= scores[name] < 100
        assert math.isnan(scores["dice"]) == (scores["status"] == "both_empty")


@pytest.mark.parametrize("axis", range(3))
def test_a_single_slice_is_scored_in_its_plane_by_hand(axis: int) -> None:
    """Squares of 4 x 4 pixels, 2 apart; a contour has 12 straight pieces of 1 mm and 4 corners of half a diagonal."""
    ref, pred = np.zeros((1, 10, 12), np.uint8), np.zeros((1, 10, 12), np.uint8)
    ref[0, 3:7, 3:7], pred[0, 3:7, 5:9] = 1, 1
    masks = [np.moveaxis(mask, 0, axis) for mask in (pred, ref)]
    spacing = np.insert(np.array([1.0, 1.0]), axis, 7.0)
    scores = case_scores(*masks, spacing, [1])[1]
    assert (scores["dice"], scores["hd95"], scores["hd"], scores["assd"]) == (0.5, 2.0, 2.0, 1.0)
    corner = math.sqrt(0.5)
    both_contours = 2 * (12 + 4 * corner)
    # on the other contour: of the upper edge 2 straight pieces and a corner, the same below, and for both squares
    on_contour = case_scores(*masks, spacing, [1], nsd_tolerance_mm=0.0)[1]["nsd"]
    assert on_contour == pytest.approx((8 + 4 * corner) / both_contours)
    # within 1 mm: one more piece of each of these edges, and the two ends of the side between them
    assert scores["nsd"] == pytest.approx((16 + 4 * corner) / both_contours)


def test_invalid_tolerances_raise() -> None:
    mask = box((2, 3, 4), (7, 12, 15))
    for tolerance in (-1.0, math.inf, math.nan, "1", None, True):
        with pytest.raises(DataError, match="tolerance of all classes"):
            case_scores(mask, mask, SPACING, [1], nsd_tolerance_mm=tolerance)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="class 'b' is out of range"):
        case_scores(mask, mask, SPACING, {"a": 1, "b": 2}, nsd_tolerance_mm={"a": 1.0, "b": math.inf})
    with pytest.raises(DataError, match=r"without an NSD tolerance\n  found: 'b', 'c'"):
        case_scores(mask, mask, SPACING, {"a": 1, "b": 2, "c": 3}, nsd_tolerance_mm={"a": 1.0})


def test_masks_without_three_axes_or_voxels_raise() -> None:
    for shape in ((4,), (4, 5), (1, 2, 3, 4), ()):
        with pytest.raises(GeometryError, match="need three axes"):
            case_scores(np.zeros(shape, bool), np.zeros(shape, bool), (1, 1, 1), [1])
    with pytest.raises(GeometryError, match="differ in shape"):
        case_scores(np.zeros((2, 2), bool), np.zeros((2, 3), bool), (1, 1), [1])
    with pytest.raises(GeometryError, match="no voxels"):
        case_scores(np.zeros((2, 0, 3), bool), np.zeros((2, 0, 3), bool), (1, 1, 1), [1])
