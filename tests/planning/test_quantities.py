from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.made.datasets import case, measured, shape
from volseg.planning.fingerprint import CaseFingerprint, Fingerprint
from volseg.planning.quantities import far_cases, number_text, quantities


def usual(number: int) -> CaseFingerprint:
    organ = replace(shape(), volume_ml=100.0 + number)
    return replace(case(classes={"organ": organ}), id=f"c{number}", ranges=((-1000.0 - number, 300.0 + number),))


def data(**changes: Any) -> Fingerprint:
    odd = [replace(usual(3), id="odd", **changes)] if changes else []
    return measured(*(usual(number) for number in range(12)), *odd)


def test_cases_of_usual_spread_are_not_far() -> None:
    assert list(far_cases(data())) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"spacing_mm": (1.0, 1.0, 2.5)}, "spacing along S, median 1 mm: odd (2.5 mm)"),
        ({"shape": (128, 40, 128)}, "voxels along A, median 128: odd (40)"),
        ({"ranges": ((-1000.0, 20_000.0),)}, "values of CT, median -1005 to 306: odd (-1000 to 20,000)"),
        ({"classes": {"organ": replace(shape(), volume_ml=3.0)}}, "volume of organ, median 105 mL: odd (3 mL)"),
    ],
)
def test_a_case_far_from_the_others_is_named_with_its_value(change: dict[str, Any], text: str) -> None:
    assert list(far_cases(data(**change))) == [text]


def test_absent_classes_have_no_volume() -> None:
    (volume,) = [one for one in quantities(data(classes={})) if one.group == "volume"]
    assert np.isnan(volume.values).tolist() == [False] * 12 + [True]
    assert not volume.far.any()


def test_numbers_have_four_digits_or_all_before_the_point() -> None:
    assert [number_text(value) for value in (0.123456, 12.0, 9999.4, 123456.7)] == ["0.1235", "12", "9999", "123,457"]
