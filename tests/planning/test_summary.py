from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tests.made.datasets import case, measured, shape
from volseg.io.findings import Finding
from volseg.planning.derive import make_plan
from volseg.planning.summary import summary_text


def test_the_summary_says_what_the_set_is_and_what_was_decided() -> None:
    liver, lesion = replace(shape(), volume_ml=1500.0), replace(shape((8, 8, 8)), volume_ml=0.25)
    cases = [replace(case(classes={"liver": liver}), id=f"c{n}", ranges=((-1000.0, 300.0 + n),)) for n in range(4)]
    cases[1] = replace(cases[1], classes={"liver": liver, "lesion": lesion})
    fingerprint = replace(measured(*cases), unlabelled=7)
    plan = make_plan(fingerprint, {"mirror_axes": []})
    text = summary_text(fingerprint, plan)
    assert "Made: 4 labelled cases, 7 unlabelled\nchannel 0: CT (named by the data set)" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["lesion", "1", "1", "0.25", "0.25", "0.25"] in rows
    assert ["liver", "2", "4", "1500", "1500", "1500"] in rows
    assert ["spacing", "along", "S", "(mm)", "1", "1", "1"] in rows
    assert ["99.5", "percentile", "of", "CT", "300", "301.5", "303"] in rows
    assert "token_stride          8: the narrowest class, lesion, is 8 voxels wide in plane: 1 token, and" in text
    assert "mirror_axes           none: set by hand" in text
    assert "nearest_depth         no: " in text
    assert "Nothing looks odd." in text
    finding = Finding("empty-label", (Path("c1.nii.gz"),), "values: 0")
    odd = summary_text(fingerprint, plan, [finding])
    assert "What looks odd (0 errors, 1 warning, 0 notes):\nwarning: a label holds only background" in odd
    assert max(map(len, text.splitlines())) <= 110


def test_one_of_a_thing_is_singular_and_sizes_stay_on_a_line() -> None:
    classes = {"dot": shape((4, 4, 4))}
    fingerprint = measured(case(voxels=(30, 30, 30), classes=classes))
    text = summary_text(fingerprint, make_plan(fingerprint, {"spacing_mm": [4, 4, 4]}))
    assert "Made: 1 labelled case, 0 unlabelled" in text
    assert "dot, is 1 voxel wide in plane" in text
    assert "slices are as thick as the finest axis" in text
    assert not re.search(r"\b1 (?:times|\w+ls|tokens|cases)\b|x\n| x$", text, re.MULTILINE)


def test_many_classes_are_cut_to_the_smallest() -> None:
    classes = {f"organ{n:02}": replace(shape(), volume_ml=float(n + 1)) for n in range(60)}
    fingerprint = measured(case(classes=classes))
    text = summary_text(fingerprint, make_plan(fingerprint))
    assert "and 20 larger" in text
    assert "organ39" in text
    assert "organ40 " not in text
