"""Rules that are nnU-Net's, against what the functions of nnU-Net 2.8.1 returned (``nnunet_2_8_1.json``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volseg.models.baselines import unet_topology
from volseg.planning import nnunet, rules

RECORDED = json.loads(Path(__file__).with_name("nnunet_2_8_1.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", RECORDED["spacing"])
def test_target_spacing_median_and_largest_patch_are_equal(case: dict[str, Any]) -> None:
    target = nnunet.target_spacing(case["spacings"], case["shapes"])
    assert list(target) == case["target"]
    median = nnunet.median_shape(case["spacings"], case["shapes"], target)
    assert median.tolist() == case["median"]
    assert nnunet.start_shape(median, target).tolist() == case["start"]


@pytest.mark.parametrize("case", RECORDED["topology"])
def test_strides_and_kernels_are_equal(case: dict[str, Any]) -> None:
    strides, kernels = unet_topology(case["spacing"], case["shape"])
    assert [list(step) for step in strides] == case["strides"]
    assert [list(kernel) for kernel in kernels] == case["kernels"]


def test_strides_along_depth_are_equal_where_both_halve_in_plane() -> None:
    compared = 0
    for case in RECORDED["topology"]:
        for levels in (2, 3, 4):
            steps = np.array(case["strides"][1 : levels + 1]).reshape(-1, 3)
            if len(steps) == levels and (steps[:, 1:] == 2).all():
                along = [stride[0] for stride in rules.decoder_strides(case["spacing"], case["shape"][0], 2**levels)]
                assert along == [1, *np.cumprod(steps[:, 0]).tolist()], case
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("case", RECORDED["thick"])
def test_only_a_single_coarsest_axis_is_treated_apart(case: dict[str, Any]) -> None:
    assert nnunet.is_thick_along_depth(case["spacing"]) is case["along_depth"]


def test_target_spacing_is_the_median_of_isotropic_sets() -> None:
    spacings = [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (2.5, 1.0, 3.0)]
    assert nnunet.target_spacing(spacings, [(100, 100, 100)] * 3) == (2.0, 1.0, 1.0)


def test_target_spacing_of_thick_slices_takes_the_tenth_percentile() -> None:
    spacings = [(d, 1.0, 1.0) for d in (4, 5, 6, 7, 8)]
    assert nnunet.target_spacing(spacings, [(20, 256, 256)] * 5) == pytest.approx((4.4, 1.0, 1.0))
    assert nnunet.target_spacing(spacings, [(200, 256, 256)] * 5) == (6.0, 1.0, 1.0)  # not flat
    finer = [(0.5, 1.0, 1.0)] * 2 + [(6.0, 1.0, 1.0)] * 5
    assert nnunet.target_spacing(finer, [(20, 256, 256)] * 7) == (1.00001, 1.0, 1.0)  # the coarsest axis remains
