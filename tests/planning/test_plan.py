from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from tests.made.datasets import case, measured, shape
from tests.made.prepared_cases import made_plan
from volseg.errors import ConfigError, GeometryError
from volseg.planning.channel import ChannelIntensity
from volseg.planning.derive import make_plan
from volseg.planning.plan import Plan
from volseg.preprocessing.cache import plan_key

THICK = {"voxels": (256, 256, 36), "spacing_mm": (1.25, 1.25, 7.7)}


@pytest.fixture
def plan() -> Plan:
    return make_plan(measured(case()))


def test_a_ct_plan_by_hand(plan: Plan) -> None:
    assert plan.modality == "ct"
    assert plan.orientation == "SPL"
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan.intensity == (ChannelIntensity(rule="ct", clip_low=0, clip_high=120, mean=60, std=20),)
    assert plan.token_stride == 16
    assert plan.patch_size == (80, 80, 80)
    assert plan.decoder_strides[-1] == (16, 16, 16)
    assert plan.mirror_axes == (0, 1, 2)
    assert not plan.nearest_depth
    assert (plan.class_names, plan.num_classes, plan.num_channels) == (("background", "organ"), 2, 1)


def test_a_thick_slice_mri_plan_by_hand() -> None:
    plan = make_plan(measured(case(**THICK), channels=("T2",)))
    assert plan.intensity == (ChannelIntensity(rule="zscore"),)
    assert plan.spacing_mm == (7.7, 1.25, 1.25)
    assert plan.patch_size == (20, 160, 160)
    assert plan.nearest_depth
    assert plan.rotate_in_plane_only


def test_sagittal_slices() -> None:
    plan = make_plan(measured(case((20, 200, 256), (4.0, 0.9, 0.8))))
    assert (plan.slice_axis, plan.orientation, plan.spacing_mm) == ("R", "RIP", (4.0, 0.8, 0.9))


def test_each_channel_has_its_own_rule() -> None:
    plan = make_plan(measured(case(), channels=("CT", "PET")))
    assert [channel.rule for channel in plan.intensity] == ["ct", "zscore"]


def test_nonzero_statistics_go_with_cropping() -> None:
    plan = make_plan(measured(case(nonzero=(64, 128, 128)), channels=("T1",)))
    assert plan.crop_nonzero
    assert plan.intensity[0].nonzero
    assert plan.patch_size[2] <= 64


def test_label_values_and_names_follow_the_values_not_the_order() -> None:
    plan = replace(make_plan(measured(case())), labels={"spleen": 7, "background": 0, "liver": 3})
    assert plan.label_values == (0, 3, 7)
    assert plan.class_names == ("background", "liver", "spleen")


def test_save_and_load_give_the_same_plan(plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, spacing_mm=(1 / 3, 0.1 + 0.2, 1e-3 + 1), ignore_label=255)
    plan.save(tmp_path / "deep" / "plan.json")
    assert Plan.load(tmp_path / "deep" / "plan.json") == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_the_file_is_short_and_in_order(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert len(lines) < 40
    assert lines[1:3] == ['  "version": 1,', '  "dataset": "Made",']
    assert '  "patch_size": [80, 80, 80],' in lines


def test_a_plan_is_frozen(plan: Plan) -> None:
    with pytest.raises(FrozenInstanceError):
        plan.token_stride = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "patch", "deepest"),
    [
        ({"token_stride": 8}, (20, 160, 160), (4, 32, 32)),
        ({"patch_size": [32, 96, 96]}, (32, 96, 96), (4, 16, 16)),
        ({"patch_size": [32, 128, 128]}, (32, 128, 128), (8, 32, 32)),
        ({"patch_size": [32, 136, 128], "token_stride": 8}, (32, 136, 128), (2, 8, 8)),
        ({"patch_size": [7, 96, 96]}, (7, 96, 96), (1, 16, 16)),
        ({"patch_size": [30, 96, 96], "token_stride": 4}, (30, 96, 96), (2, 16, 16)),
        ({"spacing_mm": [2.5, 2.5, 2.5]}, (80, 80, 80), (16, 16, 16)),
        ({"token_stride": 4, "decoder_strides": [[1, 1, 1], [2, 2, 2], [2, 4, 4]]}, (22, 152, 152), (2, 4, 4)),
        ({"patch_size": None}, (20, 160, 160), (4, 32, 32)),
    ],
)
def test_what_depends_on_an_override_follows(overrides: dict[str, Any], patch: tuple, deepest: tuple) -> None:
    plan = make_plan(measured(case(**THICK)), overrides)
    assert plan.decoder_strides[-1] == deepest
    if "decoder_strides" not in overrides:
        assert plan.patch_size == patch
    for key, value in overrides.items():
        if value is not None:
            assert plan.to_dict()[key] == value


def test_overriding_the_slice_axis_turns_everything() -> None:
    plan = make_plan(measured(case(**THICK)), {"slice_axis": "R"})
    assert (plan.orientation, plan.spacing_mm) == ("RIP", (1.25, 7.7, 1.25))


def test_overriding_the_spacing_changes_what_is_anisotropic() -> None:
    plan = make_plan(measured(case(**THICK)), {"spacing_mm": [2.5, 2.5, 2.5]})
    assert not plan.nearest_depth
    assert not plan.rotate_in_plane_only


def test_overriding_the_modality_changes_the_intensity_rule() -> None:
    assert make_plan(measured(case()), {"modality": "mri"}).intensity[0].rule == "zscore"
    assert make_plan(measured(case(), channels=("A", "B")), {"modality": "ct"}).intensity[1].rule == "ct"


def test_mirroring_can_be_switched_off() -> None:
    assert make_plan(measured(case()), {"mirror_axes": []}).mirror_axes == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patchsize": [1, 2, 3]}, r"did you mean plan\.patch_size"),
        ({"labels": {"background": 0}}, "cannot be overridden"),
        ({"patch_size": [32, 100, 96]}, r"use \[32, 112, 96\]"),
        ({"patch_size": [32, 96]}, "not a list of 3 values"),
        ({"patch_size": [32, 96, 96.5]}, r"plan\.patch_size\[2\] is not a whole number"),
        ({"patch_size": [0, 96, 96]}, "out of range"),
        ({"patch_size": "large"}, "not a list"),
        ({"token_stride": 5}, "4, 8, 16"),
        ({"token_stride": True}, "not a whole number"),
        ({"token_stride": float("inf")}, "not a whole number"),
        ({"mirror_axes": [float("nan")]}, "not a whole number"),
        ({"spacing_mm": [0, 1, 1]}, "out of range"),
        ({"spacing_mm": [float("nan"), 1, 1]}, "not a finite number"),
        ({"slice_axis": "Z"}, "R, A, S"),
        ({"modality": "pet"}, "ct, mri"),
        ({"mirror_axes": [0, 3]}, "mirror_axes"),
        ({"mirror_axes": [1, 1]}, "mirror_axes"),
        ({"decoder_strides": [[1, 1, 1], [1, 2, 2]]}, "does not fit plan.token_stride"),
        ({"decoder_strides": [[1, 1, 1], [4, 2, 2], [4, 4, 4], [4, 8, 8], [4, 16, 16]]}, "does not fit"),
        ({"intensity": []}, "one entry for each channel"),
        ({"intensity": [{"rule": "ct"}]}, "incomplete"),
        ({"intensity": [{"rule": "minmax"}]}, "no such rule"),
        ({"intensity": [{"rule": "zscore", "nonzer": True}]}, r"did you mean plan\.intensity\[0\]\.nonzero"),
        ({"crop_nonzero": "yes"}, "not true or false"),
    ],
)
def test_impossible_overrides_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(measured(case(**THICK)), overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "plan.extra is not known"),
        ({"version": 2}, "another version"),
        ({"labels": {"background": 0}}, "plan.labels"),
        ({"labels": {"a": 1, "b": 2}}, "background 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "distinct"),
        ({"ignore_label": 1}, "also a class"),
        ({"dataset": 3}, "not text"),
    ],
)
def test_a_damaged_plan_file_is_refused_by_name(
    plan: Plan, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict() | change), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_field_is_named(plan: Plan) -> None:
    values = plan.to_dict()
    del values["token_stride"]
    with pytest.raises(ConfigError, match=r"plan\.token_stride is missing"):
        Plan.from_dict(values)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "not a plan"), (None, "cannot be read")])
def test_a_file_that_is_no_plan_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Plan.load(path)


def test_two_classes_side_by_side_are_not_mirrored() -> None:
    left, right = shape(centroid_mm=(30, 60, 60)), shape(centroid_mm=(90, 60, 60))
    plan = make_plan(measured(*[case(classes={"left": left, "right": right})] * 4))
    assert plan.mirror_axes == (0, 1)  # axis 2 of SPL is left-right


@pytest.mark.parametrize("spacing", [1000.0, 1e-6])
def test_a_case_of_another_order_of_magnitude_is_named(spacing: float) -> None:
    cases = [case(), case(), case(spacing_mm=(1.0, 1.0, spacing))]
    cases[2] = replace(cases[2], id="odd")
    with pytest.raises(GeometryError, match="case odd has voxels of another order") as error:
        make_plan(measured(*cases))
    assert f"2097152 voxels of {spacing:g} x 1 x 1 mm" in str(error.value)


REGIONS = {"labels": {"background": 0, "whole": 1, "core": 5}, "regions": {"whole": (1, 5), "core": (5,)}}


def test_a_plan_with_regions_comes_back_with_their_order() -> None:
    plan = made_plan(**REGIONS)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert (plan.class_names, plan.num_classes, plan.mask_values) == (("whole", "core"), 2, (0, 1, 5))
    assert (plan.label_values, plan.region_indices) == ((0, 1, 5), ((1, 2), (2,)))
    assert plan_key(plan) != plan_key(made_plan(labels=REGIONS["labels"]))


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"whole": (1, 5)}, "other classes"),
        ({"whole": (1,), "core": (5,)}, "no region"),
        ({"whole": (1, 5), "core": (1, 5)}, "same value"),
        ({"whole": (1, 7), "core": (5, 7)}, "7 is painted as 5"),
    ],
)
def test_regions_of_a_plan_are_checked(regions: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made_plan(labels=REGIONS["labels"], regions=regions)
