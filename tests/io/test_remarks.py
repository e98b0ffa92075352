"""Remarks of the readers: in the log, or as findings of the check of a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from volseg.io.remarks import collect, remark


def test_a_remark_is_collected_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    with collect() as outer:
        with collect() as inner:
            remark("header-field", Path("a"), "x")
        remark("header-field", Path("b"), "y")
    assert [one.message for one in inner] == ["x"]
    assert [(one.kind, one.files, one.message, one.severity) for one in outer] == [
        ("header-field", (Path("b"),), "y", "warning")
    ]
    assert not caplog.records
    remark("header-field", Path("c"), "z")
    assert caplog.messages == ["c: a field of the header is invalid, and was corrected: z"]
