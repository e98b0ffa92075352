from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volseg.errors import ConfigError, OutputError
from volseg.io.json_files import read_json, to_json, write_json

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(plain)
def test_it_reads_back_exactly(value: object) -> None:
    assert json.loads(to_json(value)) == value


def test_short_lists_stay_on_a_line_and_long_ones_do_not() -> None:
    text = to_json({"b": [1, 2], "a": {"x": [0.5]}, "long": [f"case_{n:03d}" for n in range(20)], "e": []})
    assert text.splitlines()[:4] == ["{", '  "b": [1, 2],', '  "a": {"x": [0.5]},', '  "long": [']
    assert text.splitlines()[4] == '    "case_000",'


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"x": float("nan")})


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("inf")})
    assert read_json(path, "test") == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_json(tmp_path / "file" / "x.json", {})


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plan file cannot be read"):
        read_json(tmp_path / "none.json", "plan")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_json(tmp_path / "bytes.json", "plan")
