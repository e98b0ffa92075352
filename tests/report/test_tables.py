from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.made.evaluations import evaluation_of, scores_of
from volseg.errors import OutputError
from volseg.evaluation.summary import summarize
from volseg.report.tables import (
    aligned_table,
    check_inputs,
    csv_text,
    markdown_text,
    number_text,
    p_text,
    write_tables,
)

ROWS = [[scores_of(0.5), scores_of(0, "both_empty", pred_voxels=0, ref_voxels=0)], "no, such\nfile"]
EVALUATION = evaluation_of({"a|b": ROWS, "c": ROWS}, ("liver", "spleen"))


def test_csv_has_a_line_per_score_and_per_failed_case() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(EVALUATION))))
    assert [(r["method"], r["case"], r["class"], r["status"]) for r in rows[:3]] == [
        ("a|b", "case_0", "liver", "ok"),
        ("a|b", "case_0", "spleen", "both_empty"),
        ("a|b", "case_1", "", "failed"),
    ]
    assert float(rows[0]["dice"]) == 0.5
    assert rows[1]["dice"] == ""
    assert rows[2]["error"] == "no, such\nfile"


def test_markdown_columns_line_up_and_end_with_the_convention() -> None:
    summary = summarize(EVALUATION, resamples=10)
    text = markdown_text(summary)
    table = text.split("\n\n")[1].splitlines()
    assert len({len(line) for line in table}) == 1
    assert text.rstrip().endswith(summary["convention"])
    assert "a\\|b − c" in text
    assert "1 failed" in text


def test_special_characters_in_cells_are_escaped() -> None:
    table = aligned_table([["name", "x"], ["a|b\nc", "1"]])
    assert len(table.splitlines()) == 3
    assert "a\\|b c" in table


def test_number_formats() -> None:
    assert number_text(None) == number_text(float("nan")) == "–"
    assert number_text(0.12345) == "0.123"
    assert (p_text(0.0), p_text(0.0009), p_text(0.0312), p_text(None)) == ("<0.001", "<0.001", "0.031", "–")


def test_tables_are_written_as_files(tmp_path: Path) -> None:
    summary = summarize(EVALUATION, resamples=10)
    files = write_tables(EVALUATION, summary, tmp_path / "new")
    assert [file.name for file in files] == ["cases.csv", "scores.json", "scores.md"]
    assert json.loads(files[1].read_text("utf-8")) == summary


@pytest.mark.parametrize("rows", [ROWS, ["broken", "broken"]])
def test_evaluations_without_scores_are_printed(rows: list) -> None:
    assert markdown_text(summarize(evaluation_of({"m": rows}, ("liver", "spleen")), resamples=10))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_no_cell_is_a_formula(start: str) -> None:
    """Names come from files and folders of anybody; numbers stay numbers, also negative ones."""
    name = f"{start}HYPERLINK(1)"
    evaluation = evaluation_of({name: [[scores_of(0.5)], f"{name}: no such file"]}, (name,))
    rows = list(csv.reader(io.StringIO(csv_text(evaluation))))[1:]
    assert [row[0] for row in rows] == [f"'{name}"] * 2
    assert rows[0][2] == f"'{name}"
    assert rows[0][4] == "0.5"
    assert rows[1][-1] == f"'{name}: no such file"
    assert not any(cell.startswith(start) for row in rows for cell in row)
    returns = csv_text(evaluation_of({f"a\r{start}": [[scores_of(0.5)]]}, ("b",)))
    assert next(iter(csv.DictReader(io.StringIO(returns))))["method"] == f"a\\r{start}"


def test_names_that_are_not_utf_8_are_written_escaped(tmp_path: Path) -> None:
    name = b"scan-\xe9".decode(errors="surrogateescape")
    evaluation = evaluation_of({name: [[scores_of(0.5)]]}, ("a",))
    for file in write_tables(evaluation, summarize(evaluation), tmp_path):
        assert b"scan-\\udce9" in file.read_bytes()


def test_files_of_somebody_else_are_kept(tmp_path: Path) -> None:
    for name in ("cases.csv", "scores.json"):
        (tmp_path / name).write_text('{"mine": 1}')
    for _ in range(2):
        write_tables(EVALUATION, summarize(EVALUATION, resamples=10), tmp_path)
    kept = {path.name: path.read_text() for path in tmp_path.glob("*.kept-*")}
    assert kept == {"cases.csv.kept-1": '{"mine": 1}', "scores.json.kept-1": '{"mine": 1}'}


def test_no_table_replaces_an_input(tmp_path: Path) -> None:
    check_inputs([tmp_path / "dataset.json"], tmp_path)
    for name in ("cases.csv", "scores.json"):
        with pytest.raises(OutputError, match="would replace an input"):
            check_inputs([tmp_path / "a" / ".." / name], tmp_path)
