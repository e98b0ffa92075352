from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made.datasets import case, shape
from volseg.planning import nnunet, rules


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ([(1, 1, 1)], "S"),
        ([(1.25, 1.25, 7.7)], "S"),
        ([(1, 5, 1)], "A"),
        ([(3, 1, 1), (3, 1, 9), (3, 1, 1)], "R"),
        ([(4, 4, 1)], "A"),
        ([(1.0, 1.005, 1.0)], "S"),  # within 1 % is a tie
    ],
)
def test_slice_axis_is_the_coarsest_and_ties_go_to_s(spacings: list, expected: str) -> None:
    assert rules.slice_axis(spacings) == expected


def test_working_axes_agree_with_the_orientation_letters() -> None:
    pairs = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    for code, orientation in rules.ORIENTATIONS.items():
        assert orientation[0] == code or (code, orientation[0]) == ("A", "A")
        assert tuple(pairs[letter] for letter in orientation) == rules.ANATOMICAL_AXES[code]


@pytest.mark.parametrize(("kept", "expected"), [(100, False), (75, False), (74, True), (40, True)])
def test_crop_nonzero_needs_more_than_a_quarter_less(kept: int, expected: bool) -> None:
    assert rules.crop_nonzero([case((100, 10, 10), nonzero=(kept, 10, 10))]) is expected


@pytest.mark.parametrize(("extent", "expected"), [(5, 4), (11.9, 4), (12, 8), (14, 8), (23.9, 8), (24, 16), (400, 16)])
def test_token_stride_puts_one_and_a_half_tokens_across_the_smallest_structure(extent: float, expected: int) -> None:
    cases = [case(classes={"large": shape((90, 90, 90)), "small": shape((extent, 80, 2))})]
    assert rules.token_stride(cases, (2, 1, 0), (1.0, 1.0, 1.0), (40, 56, 40)) == expected


def test_token_stride_counts_voxels_in_plane() -> None:
    cases = [case(classes={"organ": shape((24, 24, 2))})]
    size = (20, 64, 64)
    assert rules.token_stride(cases, (2, 1, 0), (5.0, 2.0, 2.0), size) == 8  # 12 voxels
    assert rules.token_stride(cases, (1, 2, 0), (5.0, 1.0, 1.0), size) == 4  # 2 voxels along S, which is in plane


def test_small_structures_take_fine_tokens_only_where_a_patch_has_few() -> None:
    cases = [case(classes={"aorta": shape((5, 5, 50))})]
    strides = [rules.token_stride(cases, (2, 1, 0), (1.0,) * 3, (depth, 64, 64)) for depth in (16, 32, 33, 200)]
    assert strides == [4, 4, 8, 8]  # 32 x 16 x 16 tokens are 8,192


def test_decoder_strides_halve_depth_within_a_factor_two() -> None:
    chaos = rules.decoder_strides((7.7, 1.25, 1.25), 36, 16)
    assert chaos == ((1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16))
    assert rules.decoder_strides((1, 1, 1), 36, 8) == ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))
    assert rules.decoder_strides((1, 1, 1), 12, 8) == ((1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8))  # 4 voxels left
    assert rules.decoder_strides((2, 1, 1), 64, 4) == ((1, 1, 1), (1, 2, 2), (2, 4, 4))  # a factor of 2 is too much
    assert rules.decoder_strides((1, 1, 1), 15, 4)[-1] == (4, 4, 4)  # 15 -> 8 -> 4: odd sizes round up
    assert rules.decoder_strides((1, 1, 1), 1, 4) == ((1, 1, 1), (1, 2, 2), (1, 4, 4))


def test_decoder_strides_of_a_given_patch_keep_it_divisible() -> None:
    assert rules.decoder_strides((1, 1, 1), 36, 8, exact=True)[-1] == (4, 8, 8)
    assert rules.decoder_strides((1, 1, 1), 33, 8, exact=True)[-1] == (1, 8, 8)


def deepened(spacing: tuple, patch: tuple, stride: int, **kwargs: bool) -> tuple:
    """Return the strides with all levels that nnU-Net's rule has for a patch."""
    strides = rules.decoder_strides(spacing, patch[0], stride)
    while deeper := rules.one_level_deeper(spacing, patch, strides, **kwargs):
        strides = deeper
    return strides


def test_levels_below_the_token_stride_leave_four_voxels() -> None:
    assert deepened((1, 1, 1), (40, 56, 40), 8)[-1] == (8, 8, 8)  # 5 voxels are left
    assert deepened((1, 1, 1), (128, 128, 128), 8)[-2:] == ((16, 16, 16), (32, 32, 32))
    assert deepened((1, 1, 1), (64, 128, 128), 8)[-2:] == ((16, 16, 16), (16, 32, 32))  # 4 along depth
    assert deepened((7.7, 1.25, 1.25), (20, 160, 160), 16)[-1] == (4, 32, 32)  # 5 along depth
    assert deepened((1, 1, 1), (96, 96, 96), 8)[-1] == (16, 16, 16)  # 6 are left
    assert deepened((1, 1, 1), (96, 104, 96), 8, exact=True)[-1] == (8, 8, 8)  # 104 is no multiple of 16
    assert deepened((1, 1, 1), (72, 96, 96), 8, exact=True)[-1] == (8, 16, 16)  # nor is 72, along depth alone


def test_a_level_must_leave_voxels_after_the_patch_followed_it() -> None:
    strides = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
    assert rules.leaves_voxels((16, 16, 20), strides)
    assert not rules.leaves_voxels((16, 12, 20), strides)
    assert not rules.leaves_voxels((12, 16, 20), strides)
    assert rules.leaves_voxels((2, 16, 16), ((1, 1, 1), (1, 2, 2), (1, 4, 4)))  # depth is not halved


def test_patch_is_the_median_case_rounded_up_if_it_fits() -> None:
    assert rules.patch_size((36, 50, 35), (1, 1, 1), (8, 8, 8)) == (40, 56, 40)


def test_patch_of_the_chaos_set() -> None:
    assert rules.patch_size((36, 256, 256), (7.7, 1.25, 1.25), (4, 16, 16)) == (20, 160, 160)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 600), st.integers(16, 700), st.integers(16, 700)),
    st.floats(0.5, 8.0),
    st.sampled_from([4, 8, 16]),
)
def test_patch_meets_the_budget_in_multiples_and_proportion(median: tuple, thickness: float, stride: int) -> None:
    spacing = (thickness, 1.0, 1.0)
    deepest = rules.decoder_strides(spacing, median[0], stride)[-1]
    patch = np.array(rules.patch_size(median, spacing, deepest))
    assert (patch % deepest == 0).all()
    assert patch.prod() <= rules.PATCH_VOXELS
    assert (patch < np.array(median) + deepest).all()
    start = nnunet.start_shape(median, spacing)
    if np.prod(start + deepest) > rules.PATCH_VOXELS and (patch > deepest).all():  # cut: no axis favoured
        assert patch.prod() > rules.PATCH_VOXELS * 0.5
        cover = patch / median
        assert cover.min() >= min(cover.max(), (start / median).min()) - (np.array(deepest) / median).max() - 1e-9


def mirrored(pairs: list[tuple[tuple, tuple]], extent: float = 20.0) -> tuple[int, ...]:
    cases = [case(classes={"a": shape([extent] * 3, a), "b": shape([extent] * 3, b)}) for a, b in pairs]
    return rules.mirror_axes(cases, (2, 1, 0))


def one_sided(offsets_mm: list[float], extent_mm: float = 40.0) -> tuple[int, ...]:
    """Return the mirrored axes of cases whose single class lies at these distances to the right of the middle."""
    cases = [
        case(classes={"kidney": shape((extent_mm, 40, 40), (100 + offset, 50, 50))}, midline_mm=100.0)
        for offset in offsets_mm
    ]
    return rules.mirror_axes(cases, (2, 1, 0))


def test_left_and_right_are_not_exchanged_for_a_class_of_one_side() -> None:
    """Two kidneys look alike, and only one has a label."""
    assert one_sided([-30.0] * 10) == (0, 1)
    assert one_sided([30.0] * 9 + [-30.0]) == (0, 1)
    assert one_sided([30.0] * 8 + [-30.0] * 2) == (0, 1, 2)  # on either side
    assert one_sided([19.0] * 10) == (0, 1, 2)  # reaches beyond the middle, as a liver does
    assert one_sided([21.0] * 10) == (0, 1)


def test_mirror_all_axes_with_a_single_class() -> None:
    assert rules.mirror_axes([case()], (2, 1, 0)) == (0, 1, 2)


def test_left_and_right_kidney_forbid_the_left_right_flip() -> None:
    assert mirrored([((100, 50, 50), (20, 50, 50))] * 10) == (0, 1)


def test_a_separation_in_the_same_order_but_of_no_size_is_an_accident() -> None:
    assert mirrored([((50, 50, 54), (50, 50, 50))] * 10) == (0, 1, 2)  # 4 mm of 20
    assert mirrored([((50, 50, 56), (50, 50, 50))] * 10) == (1, 2)  # 6 mm of 20


@pytest.mark.parametrize(("agreeing", "expected"), [(8, (0, 1, 2)), (9, (0, 2))])
def test_nine_of_ten_cases_must_agree(agreeing: int, expected: tuple) -> None:
    front, back = (50, 90, 50), (50, 20, 50)
    assert mirrored([(front, back)] * agreeing + [(back, front)] * (10 - agreeing)) == expected


def test_classes_that_never_meet_say_nothing() -> None:
    cases = [case(classes={"a": shape(centroid_mm=(0, 0, 0))}), case(classes={"b": shape(centroid_mm=(90, 90, 90))})]
    assert rules.mirror_axes(cases, (2, 1, 0)) == (0, 1, 2)


def test_thick_slices_and_flat_patches_rotate_in_plane_only() -> None:
    assert rules.rotate_in_plane_only((3.1, 1.0, 1.0), (64, 64, 64))
    assert rules.rotate_in_plane_only((1.0, 1.0, 1.0), (16, 64, 64))
    assert not rules.rotate_in_plane_only((2.0, 1.0, 1.0), (32, 96, 96))


def test_labels_that_cropping_takes_away_are_named_with_their_share() -> None:
    cases = [
        replace(case(classes={"a": replace(shape(), outside_nonzero=share), "b": shape()}), id=f"c{number}")
        for number, share in enumerate((0.0, 0.25, 1.0))
    ]
    assert list(rules.lost_labels(cases, (2, 1, 0), (1, 1, 1), crop=False)) == []
    assert list(rules.lost_labels(cases, (2, 1, 0), (1, 1, 1), crop=True)) == [
        ("lost-by-cropping", "a", {"c1": "25.0%", "c2": "100.0%"})
    ]


def test_labels_that_resampling_may_remove_are_named_with_their_size() -> None:
    """Thinner than half a voxel along one axis; (R, A, S) in the fingerprint, (D, H, W) of SPL in the plan."""
    cases = [
        replace(case(classes={"a": shape(extent)}), id=name)
        for name, extent in {"thick": (2, 2, 3), "thin": (2, 2, 2.4), "flat": (0.9, 2, 3)}.items()
    ]
    assert list(rules.lost_labels(cases, (2, 1, 0), (5, 2, 2), crop=True)) == [
        ("lost-by-resampling", "a", {"thin": "2.4 x 2 x 2 mm", "flat": "3 x 2 x 0.9 mm"})
    ]
