"""Comparisons: which runs are refused, what is paired with what, and what a page says about cells that differ."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volseg.config.load import load_config
from volseg.data.split_rules import choose_split
from volseg.io.datasets import read_dataset
from volseg.training.resume import save_config


def part(module: str) -> Any:
    """Import at run time: the folder of the benchmarks is on the path inside of tests only."""
    return import_module(f"training.{module}")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set of ten cases, whose files are read as bytes only."""
    root = tmp_path / "set"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
        for number in range(10):
            (root / folder / f"case_{number}.nii.gz").write_text(f"{folder} {number}", encoding="utf-8")
    pairs = [{key: f"./{key}sTr/case_{n}.nii.gz" for key in ("image", "label")} for n in range(10)]
    document = {"name": "Set", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"}, "training": pairs}
    (root / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    return root


@pytest.fixture
def run(tmp_path: Path, dataset: Path) -> Path:
    """The folder of a run with the default settings, with what a training stores before its first step."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = load_config(None, settings_of(dataset, "train.batch_size=2"))
    save_config(config, folder)  # states the batch size of the plan
    split = choose_split(read_dataset(dataset), config.data, 0)
    (folder / "splits.json").write_text(json.dumps(split), encoding="utf-8")
    content = part("unchanged").contents.__wrapped__(str(dataset))
    (folder / "inputs.json").write_text(json.dumps({"cases": content}), encoding="utf-8")
    return folder


def settings_of(dataset: Path, *more: str) -> list[str]:
    return [f"data.root={dataset}", "train.max_steps=1", *more]


@pytest.fixture
def no_config(tmp_path: Path) -> Path:
    file = tmp_path / "empty.yaml"
    file.write_text("{}\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("more", [[], ["data.workers=0"], ["train.batch_size=2"], ["device=cpu"]])
def test_a_run_of_the_same_settings_and_data_is_kept(
    run: Path, dataset: Path, no_config: Path, more: list[str]
) -> None:
    part("unchanged").check_unchanged(run, no_config, settings_of(dataset, *more))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["train.lr=0.5"], "train.lr"),
        (["train.batch_size=3"], "the run has 2, given 3"),
        (["data.fold=1"], "data.fold"),
        (["model.weights=official"], "model.weights"),
    ],
)
def test_a_run_of_other_settings_is_refused(
    run: Path, dataset: Path, no_config: Path, more: list[str], text: str
) -> None:
    with pytest.raises(SystemExit, match=text):
        part("unchanged").check_unchanged(run, no_config, settings_of(dataset, *more))


def test_settings_that_are_left_out_or_lie_in_a_file_are_compared(run: Path, dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("train: {lr: 0.5}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"train\.lr: the run has .*, given 0\.5"):
        part("unchanged").check_unchanged(run, file, settings_of(dataset))
    save_config(load_config(file, settings_of(dataset)), run)
    file.write_text("{}\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"train\.lr: the run has 0\.5"):
        part("unchanged").check_unchanged(run, file, settings_of(dataset))


def test_a_run_of_other_cases_or_of_another_split_is_refused(run: Path, dataset: Path, no_config: Path) -> None:
    unchanged = part("unchanged")
    (run / "splits.json").write_text(json.dumps({"train": ["case_0"], "val": ["case_1"]}), encoding="utf-8")
    with pytest.raises(SystemExit, match="another part of the split: case_"):
        unchanged.check_unchanged(run, no_config, settings_of(dataset))
    (dataset / "labelsTr" / "case_3.nii.gz").write_text("changed", encoding="utf-8")
    unchanged.contents.cache_clear()
    with pytest.raises(SystemExit, match="missing, new or changed: case_3\n"):
        unchanged.check_unchanged(run, no_config, settings_of(dataset))


def test_a_finished_run_is_checked_before_it_is_kept(run: Path, dataset: Path, no_config: Path) -> None:
    runs = part("runs")
    (run / runs.FINISHED).write_text('{"model": "old record"}', encoding="utf-8")
    assert runs.finished_run(run, "a", no_config, settings_of(dataset)) == {"model": "old record"}
    with pytest.raises(SystemExit, match="other settings"):
        runs.finished_run(run, "a", no_config, settings_of(dataset, "train.lr=0.5"))


def rows_of(cases: str, classes: str, status: str = "ok") -> list[dict[str, str]]:
    return [{"case": case, "class": name, "status": status, "error": "why"} for case in cases for name in classes]


@pytest.mark.parametrize(
    "other",
    [rows_of("ac", "xy"), rows_of("a", "xy"), rows_of("ab", "x"), rows_of("ab", "yx"), rows_of("ab", "xy", "failed")],
)
def test_cells_that_cannot_be_paired_are_refused(other: list[dict[str, str]]) -> None:
    check_pairs = part("unchanged").check_pairs
    check_pairs({"one": rows_of("ab", "xy"), "two": rows_of("ba", "xy")})
    with pytest.raises(SystemExit, match="two"):
        check_pairs({"one": rows_of("ab", "xy"), "two": other})


def cell(model: str, draw: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Return the record of a cell as version 1 of `compare.py` wrote it, with more keys."""
    hardware = {"cpu": "made", "threads": 1, "gpu": "card"}
    record = {"model": model, "fold": draw[0], "seed": draw[1], "hardware": hardware, "commit": "0" * 40, "curve": []}
    record |= {"date": "2026-11-30", "parameters": 1, "steps": 1, "train_seconds": 1.0, "peak_memory_mb": 1}
    return record | {"scores": {"mean": {"dice": 0.5}}} | more


def page(cells: list[dict[str, Any]], undefined: str = "") -> str:
    """Return the page of cells with two cases and classes; those of a model may have one undefined score."""
    rows = [
        {key: run[key] for key in ("model", "fold", "seed")}
        | {"case": f"{run['fold']}{case}", "class": name, "hd95": "1", "nsd": "1", "dice": f"0.{number + 1}"}
        for run in cells
        for number, (case, name) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")])
    ]
    for row in rows:
        if row["model"] == undefined and (row["case"], row["class"]) == ("0a", "y"):
            row.update(dice="", hd95="", nsd="")
    record = {"dataset": "Set", "budget": "0.5min", "reference": "identity", "cells": cells}
    return str(part("compare_tables").markdown({**record, "command": ["compare.py", "--runs", "a b"]}, rows))


def test_equal_cells_need_no_words() -> None:
    text = page([cell("volseg", (0, 0)), cell("identity", (0, 0))])
    assert "# Set: 0.5 minutes per cell" in text
    assert "`python compare.py --runs 'a b'`" in text
    for word in ("lacks", "undefined", "Settings:", "Machines:", "Resumed"):
        assert word not in text


def test_the_page_says_what_cells_do_not_have_in_common() -> None:
    cells = [cell("volseg", (0, 0)), cell("volseg", (1, 0)), cell("identity", (0, 0))]
    assert "identity lacks 1/0" in page(cells)
    pair = [cell("volseg", (0, 0)), cell("identity", (0, 0))]
    assert "1 scores are undefined for some models only" in page(pair, undefined="volseg")
    settings = ["model.weights=official", "data.workers=0", "data.fold=0", "seed=0"]
    text = page(
        [cell("volseg", (0, 0), settings=settings), cell("identity", (0, 0), settings=["model.encoder=identity"])]
    )
    assert "Settings: volseg: model.weights=official." in text
    text = page([cell("volseg", (0, 0), device="cuda", precision="bfloat16"), cell("identity", (0, 0))])
    assert "Machines: volseg: card, bfloat16; identity: made, 1 thread, float32." in text
    text = page([cell("volseg", (0, 0), resumed_commits=["1" * 40]), cell("identity", (0, 0))])
    assert "Resumed, with the peak memory since then: volseg 0/0." in text
    assert "commit 0000000000, 1111111111:" in text


def test_an_undefined_score_of_one_seed_does_not_remove_the_other() -> None:
    scores = {(0, seed): {"dice": {"a": np.array([value, 0.5])}} for seed, value in enumerate((np.nan, 0.25))}
    model = part("comparison").Model("volseg", [], scores)
    assert model.values("dice").tolist() == [[0.25, 0.5]]


def test_a_mean_skips_what_is_undefined_and_one_case_has_no_interval() -> None:
    cells, tables = part("ablation_cells"), part("ablation_tables")
    values = np.array([[0.2, np.nan, np.nan], [0.4, 0.6, np.nan]])
    mean, low, high = cells.mean_interval(values)
    assert mean == pytest.approx((0.3 + 0.6) / 2)
    assert low < mean < high
    assert tables.interval_text(values[1:], "{:.2f}") == "0.50"
    assert tables.interval_text(np.full((2, 1), np.nan), "{:.2f}") == ""


def test_results_whose_names_have_dots_do_not_replace_each_other(tmp_path: Path) -> None:
    record = import_module("shared.record")
    for name in ("0.5min", "0.2min"):
        record.write_json(record.with_ending(tmp_path / name, ".json"), name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.2min.json", "0.5min.json"]


def test_the_name_of_a_data_set_is_one_folder(dataset: Path) -> None:
    file = dataset / "dataset.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"Set"', '"../CT/MR study"'), encoding="utf-8")
    assert part("runs").folder_name(read_dataset(dataset)) == "_CT_MR study"


def test_unfinished_seeds_are_named() -> None:
    cells, tables = part("ablation_cells"), part("few_shot_tables")
    both, one = (cells.Cell(name, [], dict.fromkeys(seeds)) for name, seeds in (("a", (0, 1)), ("b", (1,))))
    assert tables.unequal_seeds({5: [both, both]}) == ""
    assert "b with 5: 1." in tables.unequal_seeds({5: [both, one]})
