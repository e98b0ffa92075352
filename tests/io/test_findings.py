from __future__ import annotations

from pathlib import Path

import pytest

from volseg.errors import DataError, GeometryError
from volseg.io.findings import KINDS, SEVERITIES, Finding, counts, in_order, refuse_errors, report

FINDINGS = [
    Finding("voxel-order", (Path("l9"),), "LPS; image: RAS"),
    *(Finding("duplicate", (Path(f"i{n}"), Path(f"j{n}")), "same") for n in range(7)),
    Finding("grid", (Path("l2"),), "2 mm; image: 1 mm", "export the label again"),
    Finding("grid", (Path("l1"),), "3 mm; image: 1 mm"),
]


def test_a_report_groups_by_severity_and_kind_and_counts_the_rest() -> None:
    lines = report(FINDINGS).splitlines()
    assert lines[:5] == [
        f"error: {KINDS['grid'].title} (grid, 2 found)",
        "  l1: 3 mm; image: 1 mm",
        "  l2: 2 mm; image: 1 mm",
        f"  hint: {KINDS['grid'].hint}",
        "  hint: export the label again",
    ]
    assert lines[5] == f"warning: {KINDS['duplicate'].title} (duplicate, 7 found)"
    assert lines[6:11] == [f"  i{n}, j{n}: same" for n in range(5)]
    assert lines[11:13] == ["  and 2 more", f"  hint: {KINDS['duplicate'].hint}"]
    assert lines[13].startswith("note: ")
    assert counts(FINDINGS) == "2 errors, 7 warnings, 1 note"


def test_many_files_of_a_finding_are_counted() -> None:
    files = tuple(Path(f"f{n}") for n in range(8))
    assert "  f0, f1, f2, f3, f4 and 3 more: lost" in report([Finding("lost-by-cropping", files, "lost")])


def test_the_table_of_kinds_is_in_the_order_of_severities() -> None:
    order = [SEVERITIES.index(kind.severity) for kind in KINDS.values()]
    assert order == sorted(order)
    assert {one.kind for one in in_order(FINDINGS)} <= set(KINDS)


def test_errors_are_raised_together_and_warnings_are_not() -> None:
    refuse_errors(FINDINGS[:8], Path("data"))
    with pytest.raises(DataError, match=r"data has 2 errors:\nerror: .*\(grid, 2 found\)") as caught:
        refuse_errors(FINDINGS, Path("data"))
    assert "duplicate" not in str(caught.value)


def test_an_error_becomes_a_finding_with_both_values() -> None:
    error = GeometryError("not as the image", file="l", found="2 mm", expected="1 mm", hint="export it", kind="grid")
    finding = Finding.of_error(error, Path("i"))
    assert finding == Finding("grid", (Path("l"),), "not as the image; found: 2 mm; expected: 1 mm")
    assert finding.to_dict() == {
        "severity": "error",
        "kind": "grid",
        "files": ["l"],
        "message": "not as the image; found: 2 mm; expected: 1 mm",
        "hint": KINDS["grid"].hint,
    }
    other = Finding.of_error(DataError("damaged", hint="copy it again"), Path("i"))
    assert other == Finding("unreadable", (Path("i"),), "damaged", "copy it again")
    same = DataError(KINDS["grid"].title, found="2 mm", kind="grid")
    assert Finding.of_error(same, Path("i")).message == "found: 2 mm"
