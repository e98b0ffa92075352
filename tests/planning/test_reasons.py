from __future__ import annotations

from pathlib import Path

import pytest

from tests.made.datasets import case, measured, shape
from volseg.errors import ConfigError
from volseg.planning.derive import make_plan, revise_plan
from volseg.planning.plan import Plan
from volseg.planning.settings import FREE

THICK = {"voxels": (256, 256, 36), "spacing_mm": (1.25, 1.25, 7.7)}


def test_every_field_that_can_be_set_has_a_reason() -> None:
    plan = make_plan(measured(case()))
    assert set(plan.reasons) == set(FREE)
    assert all(len(text) > 10 for text in plan.reasons.values())


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("slice_axis", "axial slices: median spacing 1.25 x 1.25 x 7.7 mm along R, A, S; this axis is the coarsest"),
        ("spacing_mm", "slices are thick (median 7.7 mm"),
        ("intensity", "T2: z-score of each case"),
        ("patch_size", "the part of the median case of 36 x 256 x 256 voxels that has at most 524,288 voxels"),
        ("token_stride", "the narrowest class, small, is 16 voxels wide in plane: 2 tokens; at 16 it would be 1"),
        ("mirror_axes", "not along W (left-right): large lies to the right of small in 100% of the cases, by 2.5"),
        ("nearest_depth", "6.16 times as thick"),
        ("rotate_in_plane_only", "slices are thick"),
        ("air_below", "only CT"),
    ],
)
def test_reasons_hold_the_numbers_that_decided(field: str, part: str) -> None:
    classes = {"large": shape((90, 90, 90), (80, 50, 50)), "small": shape((20, 20, 20), (30, 50, 50))}
    plan = make_plan(measured(*[case(**THICK, classes=classes)] * 3, channels=("T2",)))
    assert part in plan.reasons[field]


def test_what_is_set_by_hand_says_so_and_what_follows_it_too(tmp_path: Path) -> None:
    plan = make_plan(measured(case()), {"token_stride": 8})
    assert plan.reasons["token_stride"] == "set by hand"
    assert "multiples of 16 x 16 x 16" in plan.reasons["patch_size"]
    plan.save(tmp_path / "plan.json")
    revised = revise_plan(Plan.load(tmp_path / "plan.json"), {"patch_size": [32, 32, 32], "mirror_axes": [0]})
    assert revised.reasons["mirror_axes"] == "set by hand"
    assert revised.reasons["decoder_strides"] == "follows plan.mirror_axes and plan.patch_size"
    assert revised.reasons["spacing_mm"] == plan.reasons["spacing_mm"]
    assert revise_plan(plan, {}).reasons == plan.reasons


def test_reasons_do_not_make_plans_different_and_cannot_be_set() -> None:
    plan = make_plan(measured(case()))
    assert plan == Plan.from_dict({key: value for key, value in plan.to_dict().items() if key != "reasons"})
    with pytest.raises(ConfigError, match="cannot be overridden"):
        make_plan(measured(case()), {"reasons": {}})
