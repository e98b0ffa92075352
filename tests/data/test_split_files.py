"""Files that state splits, in their three forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from volseg.data.split_files import read_run_split, read_split_file, split_sha256
from volseg.errors import ConfigError, DataError, VolsegError

SPLITS = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}]


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_list_of_nnunet(tmp_path: Path) -> None:
    assert read_split_file(written(tmp_path / "splits_final.json", SPLITS)) == dict(enumerate(SPLITS))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_cases_and_folds(separator: str, tmp_path: Path) -> None:
    rows = [("Case", "site", "fold"), ("a", "x", "0"), ("b", "x", "1"), ("c", "y", "")]
    file = written(tmp_path / "folds.csv", "\n".join(map(separator.join, rows)))
    assert read_split_file(file) == dict(enumerate(SPLITS))


def test_folds_as_pandas_writes_them(tmp_path: Path) -> None:
    file = written(tmp_path / "folds.csv", "case,fold\na,0.0\nb,1.0\nc,")
    assert read_split_file(file) == {0: {"train": ["b", "c"], "val": ["a"]}, 1: {"train": ["a", "c"], "val": ["b"]}}


@pytest.mark.parametrize("fold", [3, "all"])
def test_the_split_of_a_run_is_that_of_its_fold(fold: int | str, tmp_path: Path) -> None:
    content = {"fold": fold, **SPLITS[0]}
    assert read_split_file(written(tmp_path / "splits.json", content)) == {fold: SPLITS[0]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", [], "an empty list"),
        ("s.json", [{"train": ["a"]}], "no list of cases under 'val'"),
        ("s.json", {"a": 0, "b": 1}, "no list of cases under 'train'"),
        ("s.json", {"fold": -1, **SPLITS[0]}, "not a number"),
        ("s.json", "[", "not valid JSON"),
        ("s.csv", "", "columns case and fold"),
        ("s.csv", "case,part\na,0", "columns case and fold"),
        ("s.csv", "case,fold\na,0\nb,first\nc,-1", "row 3: first"),
        ("s.csv", "case,fold\na,0\nb,1.5", "row 3: 1.5"),
        ("s.csv", "case,fold\na,0\nb", "row 3: 1"),
        ("s.csv", "case,fold\na,\nb,", "no case"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(name: str, content: object, message: str, tmp_path: Path) -> None:
    file = written(tmp_path / name, content)
    with pytest.raises((ConfigError, DataError)) as error:
        read_split_file(file)
    assert message in str(error.value)
    assert error.value.file == str(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("none.json", "none.csv"):
        with pytest.raises(VolsegError, match=name):
            read_split_file(tmp_path / name)


def test_the_split_of_a_run_that_was_edited_is_noticed(tmp_path: Path) -> None:
    split = {"fold": 0, "rule": "by case", "sha256": split_sha256(SPLITS[0]), **SPLITS[0]}
    assert read_run_split(written(tmp_path / "splits.json", split)) == split
    for part in ({"train": ["b"]}, {"val": ["a", "d"]}, {"train": ["a", "b"], "val": ["c"]}):
        with pytest.raises(ConfigError, match="was changed"):
            read_run_split(written(tmp_path / "splits.json", {**split, **part}))
    with pytest.raises(ConfigError, match="both trained on and held out"):
        read_run_split(written(tmp_path / "splits.json", {**split, "train": ["a", "b"]}))
