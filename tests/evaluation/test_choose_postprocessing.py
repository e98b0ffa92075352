"""Postprocessing is chosen for the classes whose masks it improves, and only for these."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.made.datasets import save_nifti
from volseg.evaluation.choose_postprocessing import Choice, PredictedCase, Trial, choose_postprocessing
from volseg.io.cases import Case
from volseg.io.labels import LabelMap

NAMES = ("strayed", "paired", "specks", "hollow", "rarely", "absent")
CLASSES = LabelMap({name: (value,) for value, name in enumerate(NAMES, start=1)}, ignore_label=9)
Labels = NDArray[np.uint8]
AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])  # 1 ml a voxel


def case_masks(number: int) -> tuple[Labels, Labels]:
    """Reference and prediction of a case, (48, 12, 12): each class has 8 slices of its own."""
    reference = np.zeros((48, 12, 12), np.uint8)
    reference[0:4, 0:4, 0:4] = 1
    reference[8:12, 0:4, 0:4] = reference[8:12, 6:10, 6:10] = 2
    reference[16:20, 0:4, 0:4] = reference[16:20, 6:10, 6:9] = 3
    reference[24:29, 0:5, 0:5] = 4
    reference[32:36, 0:4, 0:4] = 5
    reference[40:44, 0:4, 0:4] = 6 if number == 0 else 9  # in all other cases the class is absent, or ignored
    prediction = np.where(reference == 9, 0, reference)
    prediction[0:4, 8:12, 8:11] = 1  # 48 voxels, three quarters of the organ
    prediction[16, 11, number] = 3  # one voxel beside parts of 64 and 48
    prediction[25:28, 1:4, 1:4] = 0  # a hole of 27 voxels in 125
    if number < 2:
        prediction[32:36, 8:12, 8:10] = 5  # in two cases of eight
    if number > 0:
        prediction[41, 2, 2] = 6  # a speck where nobody looks
    return reference, prediction


def made(folder: Path, count: int) -> list[PredictedCase]:
    cases = []
    for number in range(count):
        reference, prediction = case_masks(number)
        image = save_nifti(folder / f"images/c{number}.nii.gz", reference, AFFINE)
        label = save_nifti(folder / f"labels/c{number}.nii.gz", reference, AFFINE)
        mask = save_nifti(folder / f"masks/c{number}.nii.gz", prediction, AFFINE)
        cases.append(PredictedCase(Case(f"c{number}", (image,), label), mask))
    return cases


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> Choice:
    return choose_postprocessing(made(tmp_path_factory.mktemp("cases"), 8), CLASSES)


def test_each_class_gets_what_helps_it(choice: Choice) -> None:
    chosen = choice.postprocessing
    assert chosen.largest_component == ("strayed",)
    assert dict(chosen.min_volume_ml) == {"specks": 1.1}  # 1% of 112 ml, which removes the speck and no part
    assert chosen.fill_holes == ("hollow",)
    assert choice.cases == 8


def test_every_trial_has_its_figures(choice: Choice) -> None:
    trials = {(one.label, one.step, one.volume_ml): one for one in choice.trials}
    assert len(trials) == len(choice.trials) == 4 * len(NAMES)  # the largest, two volumes, holes
    stray = trials["strayed", "largest_component", None]
    np.testing.assert_allclose(stray.comparison["mean_difference"], 1 - 2 * 64 / (64 + 112))
    assert (stray.comparison["n"], stray.comparison["wins"], stray.helps, stray.chosen) == (8, 8, True, True)
    assert "strayed, largest_component: Dice +0.2727 [+0.2727, +0.2727], 8 better, 0 worse of 8 cases" in str(stray)
    pair = trials["paired", "largest_component", None]  # both parts are of the same size, and stay
    assert pair.comparison["ties"] == 8
    rare = trials["rarely", "largest_component", None]
    assert rare.comparison["mean_difference"] > 0
    assert rare.comparison["ci95"][0] == 0  # some samples hold neither of the two cases
    assert not rare.helps
    part = trials["specks", "largest_component", None]  # takes the smaller part away, too
    np.testing.assert_allclose(part.comparison["mean_difference"], 2 * 64 / (64 + 112) - 2 * 112 / (112 + 113))
    assert not part.helps
    assert trials["absent", "largest_component", None].comparison["ties"] == 8  # ignored voxels do not count
    json.dumps([one.to_dict() for one in choice.trials], allow_nan=False)


def test_a_gain_that_is_not_shown_is_none() -> None:
    """Of cases that all improve, but by less than the last digit that is shown."""

    def trial(gain: float) -> Trial:
        comparison = {"mean_difference": gain, "ci95": [gain / 2, gain * 2]}
        return Trial(label="organ", step="fill_holes", volume_ml=None, comparison=comparison)

    assert [trial(gain).helps for gain in (2.9e-6, 0.99e-4, 1.01e-4)] == [False, False, True]


def test_few_cases_and_regions_choose_nothing(tmp_path: Path) -> None:
    few = choose_postprocessing(made(tmp_path, 5), CLASSES)
    assert few.postprocessing.to_dict() == {"largest_component": [], "min_volume_ml": {}, "fill_holes": []}
    assert few.reason == "a choice takes 6 cases or more, not 5"
    regions = choose_postprocessing(made(tmp_path, 6), LabelMap({"whole": (1, 2), "core": (2,)}))
    assert "regions" in str(regions.reason)


def test_a_case_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = made(tmp_path, 8)
    cases[3].mask.write_bytes(b"no mask")
    choice = choose_postprocessing(cases, CLASSES)
    assert choice.cases == 7
    assert choice.postprocessing.largest_component == ("strayed",)
    assert "c3 is left out" in caplog.text
